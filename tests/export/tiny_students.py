"""Small students with random weights, their classes and features."""

import numpy as np
import torch

from attar.students.config import StudentConfig
from attar.students.student import Student, build_student

SIZE = 64
DIM = 24
NAMES = ("golden_retriever", "tabby cat", "tractor", "acoustic guitar", "kayak")


def unit_features(count, dim=DIM, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_student(name: str, class_names=(), **options) -> Student:
    torch.manual_seed(0)
    config = StudentConfig(weights="none", image_size=SIZE, **options)
    student = build_student(
        name, len(class_names) or DIM, config, class_names=class_names, teacher="pocket"
    )
    for module in student.modules():  # statistics as after training, not the neutral 0 and 1
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.05, 0.3)
    return student.eval()
