"""What a remote teacher's spec may say, and the answers that are taken for answers."""

import base64
import json
import pickle
import socket

import numpy as np
import pytest
import torch
from tests.doubles import random_image
from tests.remote.conftest import Client
from tests.remote.proxy import proxy

from attar.errors import UsageError
from attar.teachers.base import Teacher
from attar.teachers.registry import describe_teacher_spec, load_teacher
from attar.teachers.remote_address import Address
from attar.teachers.remote_images import SendPrepare, encode_image
from attar.teachers.remote_shapes import SHAPES, BadAnswer, read_embeddings


def test_a_spec_is_read() -> None:
    spec = "https://api.example.com/v1/#org/clip?shape=jina&size=384&fit=squash&scale=50"
    address = Address.parse(spec)
    assert (address.url, address.model) == ("https://api.example.com/v1", "org/clip")
    assert (address.shape, address.size, address.fit, address.scale) == ("jina", 384, "squash", 50)
    assert describe_teacher_spec(spec).kind == "remote"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("https://host/v1", "names no model"),
        ("https://host/v1#?shape=jina", "names no model"),
        ("https:///v1#m", "should read"),
        ("https://host:port/v1#m", "should read"),
        ("https://me:secret@host/v1#m", "without a key"),
        ("https://host/v1?key=secret#m", "without a key"),
        ("https://host/v1#m?shape=cohere", "unknown shape of a remote teacher 'cohere'"),
        ("https://host/v1#m?fit=pad", "unknown fit"),
        ("https://host/v1#m?size=big", "size 'big' should be a number"),
        ("https://host/v1#m?size=0", "size '0'"),
        ("https://host/v1#m?width=3", "unknown option of a remote teacher 'width'"),
    ],
)
def test_a_wrong_spec_is_refused_and_shows_no_key(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        describe_teacher_spec(spec)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_meeting_a_server_costs_nothing(client: Client, local: Teacher) -> None:
    with proxy(client.url) as between:
        teacher = load_teacher(f"{between.url}#tiny")
        assert between.bytes == 0
    info = teacher.info
    assert (info.dim, info.logit_scale) == (local.info.dim, local.info.logit_scale)
    assert isinstance(teacher, Teacher)
    prepare = pickle.loads(pickle.dumps(teacher.prepare))
    assert prepare(random_image()).shape == (3, 32, 32)
    assert client.queries == 0


def test_the_same_model_under_the_same_address_is_the_same_teacher(client: Client) -> None:
    names = ("tiny", "tiny?size=40", "tiny?shape=infinity&size=32", "tiny?format=jpeg")
    infos = []
    for name in names:
        teacher = load_teacher(f"{client.url}#{name}")
        infos.append(teacher.info_with(32).identity)
        assert load_teacher(f"{client.url}#{name}").info_with(32).identity == infos[-1]
    assert len(set(infos)) >= 3


def test_a_server_that_is_not_there_or_serves_another_model(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="serves no model 'big'; it serves: tiny"):
        load_teacher(f"{client.url}#big")
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    with pytest.raises(UsageError, match="gives no answer"):
        load_teacher(f"http://127.0.0.1:{port}/v1#tiny")
    monkeypatch.setenv("ATTAR_TEACHER_API_KEY", "not-the-key-at-all")
    with pytest.raises(UsageError, match="set ATTAR_TEACHER_API_KEY") as error:
        load_teacher(f"{client.url}#tiny")
    assert "not-the-key" not in str(error.value)


def test_a_service_for_texts_takes_no_images(client: Client) -> None:
    teacher = load_teacher(f"{client.url}#tiny?shape=openai")
    with pytest.raises(UsageError, match="takes texts only"):
        teacher.prepare(random_image())


def test_png_loses_nothing_and_jpeg_little() -> None:
    pixels = SendPrepare(size=32)(random_image())
    assert encode_image(pixels, "png")[1:4] == b"PNG"
    lossy = encode_image(pixels, "jpeg")
    assert lossy[:2] == b"\xff\xd8"
    from attar.data.images import decode_image

    exact = np.asarray(decode_image(encode_image(pixels, "png")))
    assert torch.equal(torch.from_numpy(exact.copy()).permute(2, 0, 1), pixels)
    near = np.asarray(decode_image(lossy)).transpose(2, 0, 1).astype(float)
    assert np.abs(near - pixels.numpy()).mean() < 6


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(33, 90), (200, 41), (64, 64), (7, 5)])
def test_what_is_sent_is_a_square(fit: str, size: tuple[int, int]) -> None:
    pixels = SendPrepare(size=64, fit=fit)(random_image(2, size))
    assert (pixels.shape, pixels.dtype) == ((3, 64, 64), torch.uint8)


def test_requests_have_the_shapes_of_their_services() -> None:
    jina = SHAPES["jina"].images("m", ["QUJD"], "image/png")
    assert jina == {"model": "m", "input": [{"image": "QUJD"}]}
    infinity = SHAPES["infinity"].images("m", ["QUJD"], "image/jpeg")
    assert infinity["modality"] == "image"
    assert infinity["input"] == ["data:image/jpeg;base64,QUJD"]
    assert SHAPES["openai"].texts("m", ["a"]) == {"model": "m", "input": ["a"]}


def reply(*rows: object, **more: object) -> bytes:
    return json.dumps({"data": [{"embedding": row, **more} for row in rows]}).encode()


def test_answers_are_put_in_order() -> None:
    document = {"data": [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2]}]}
    assert read_embeddings(json.dumps(document).encode(), 2, 2).tolist() == [[1, 2], [3, 4]]
    row = base64.b64encode(np.array([1, 2], "<f4").tobytes()).decode()
    assert read_embeddings(reply(row), 1, None).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"data": [', "broken JSON"),
        (b"[]", "another form"),
        (b'{"answer": 42}', "another form"),
        (reply("?"), "another form"),
        (reply([1, 2], [3, 4], [5, 6]), "3 embeddings for 2 questions"),
        (reply([1, 2], [3, 4], index=0), "2 embeddings for 2 questions"),
        (reply([1, 2], [3]), "an embedding of 1 numbers, 2 expected"),
        (reply([1], [3]), "an embedding of 1 numbers, 2 expected"),
        (reply([1, 2], [3, float("nan")]), "not finite"),
        (reply([1, 2], [0, 0]), "zero"),
    ],
)
def test_an_answer_that_cannot_be_used_says_why(body: bytes, words: str) -> None:
    with pytest.raises(BadAnswer, match=words):
        read_embeddings(body, 2, 2)
