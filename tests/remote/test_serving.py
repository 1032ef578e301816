"""The vendor's side: who may ask, what is refused, and what stays up."""

import base64
import http.client
import io
import json
import random
import socket
import struct
import threading
import zlib
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from tests.doubles import make_hf_clip_folder, random_image
from tests.remote.conftest import QUOTA, Client

from attar.errors import UsageError
from attar.serving.advice import find_prepare
from attar.serving.config import ServeConfig
from attar.serving.keys import Client as KeyHolder
from attar.serving.keys import QuotaSpent, Usage, read_keys
from attar.teachers.base import Teacher
from attar.teachers.registry import load_teacher


def post(url: str, key: str | None, body: bytes, **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    connection.request("POST", "/v1/embeddings", body, headers)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, json.loads(answer)


def ask(client: Client, *inputs: object, **more: object) -> tuple[int, dict]:
    return post(client.url, client.key, json.dumps({"input": inputs, **more}).encode())


def png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def bomb() -> str:
    """Return a PNG of a few kB that says it is 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(3751 * 300), 9)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()


def test_every_shape_is_understood(client: Client, local: Teacher) -> None:
    image = random_image(3)
    features = [
        *local.encode_images(local.prepare(image).unsqueeze(0)).numpy(),
        *local.encode_texts(["a dog"]).numpy(),
    ]
    encoded = png(image)
    for inputs, more, want in (
        ([{"image": encoded}, {"text": "a dog"}], {}, features),
        ([f"data:image/png;base64,{encoded}"], {"modality": "image"}, features[:1]),
        (["a dog"], {"modality": "text", "model": "tiny"}, features[1:]),
    ):
        for encoding in ("float", "base64"):
            status, answer = ask(client, *inputs, **more, encoding_format=encoding)
            assert status == 200
            rows = [one["embedding"] for one in answer["data"]]
            if encoding == "base64":
                rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
            np.testing.assert_allclose(np.array(rows), np.array(want), rtol=1e-4, atol=1e-5)
            assert answer["usage"]["queries"] == len(want)
    plain = post(client.url, client.key, b'{"input": "a dog"}')[1]["data"][0]["embedding"]
    np.testing.assert_allclose(plain, features[1], rtol=1e-4, atol=1e-5)
    assert client.queries == 2 * (2 + 1 + 1) + 1


def test_a_missing_or_wrong_key_is_refused(client: Client) -> None:
    body = json.dumps({"input": ["a dog"]}).encode()
    for key in (None, "", "wrong", client.key[:-1], client.key + "x", client.key.swapcase()):
        assert post(client.url, key, body)[0] == 401
        assert post(client.url, key, b"{" * 1_000_000)[0] == 401
    for path in ("/v1/models", "/v1/usage", "/metrics"):
        connection = http.client.HTTPConnection(urlsplit(client.url).netloc, timeout=30)
        connection.request("GET", path)
        assert connection.getresponse().status == 401
    assert client.queries == 0


@pytest.mark.parametrize(
    ("inputs", "more", "status", "words"),
    [
        (["/etc/passwd"], {"modality": "image"}, 400, "path or an address"),
        (["http://127.0.0.1/a.png"], {"modality": "image"}, 400, "path or an address"),
        (["file:///etc/hostname"], {"modality": "image"}, 400, "path or an address"),
        ([{"image": "https://example.com/x.jpg"}], {}, 400, "path or an address"),
        ([{"image": "../../secret.png"}], {}, 400, "path or an address"),
        ([{"image": "/etc/pass123"}], {}, 400, "no image"),  # base64, as it happens
        ([{"image": "!!!"}], {}, 400, "not base64"),
        ([{"image": ""}], {}, 400, "not base64"),
        ([{"image": 3}], {}, 400, "image in base64"),
        ([{"image": base64.b64encode(b"GIF89a" + bytes(40)).decode()}], {}, 400, "no image"),
        ([{"image": bomb()}], {}, 413, "more than 1,000,000 pixels"),
        ([{"image": png(Image.new("RGB", (1001, 1000)))}], {}, 413, "more than 1,000,000 pixels"),
        ([{"image": png(random_image())[:400]}], {}, 400, "input 0"),
        ([{"audio": "x"}], {}, 400, "should be"),
        (["x" * 9000], {}, 413, "characters"),
        (["x"] * 65, {}, 413, "64 at most"),
        ([], {}, 400, "input should be"),
        ([""], {}, 400, "should be a text"),
        (["\ud800"], {}, 400, "Unicode"),
        (["a"], {"model": "other"}, 404, "'tiny'"),
        (["a"], {"modality": "audio"}, 400, "modality"),
        (["a"], {"encoding_format": "hex"}, 400, "encoding_format"),
    ],
)
def test_what_is_no_plain_question_is_refused_and_not_counted(
    inputs: list, more: dict, status: int, words: str, client: Client
) -> None:
    got, answer = ask(client, *inputs, **more)
    assert got == status
    assert words in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]
    assert client.queries == 0


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"[" * 100_000, b"\xff\xfe", b"3"])
def test_a_body_that_is_no_request(body: bytes, client: Client) -> None:
    assert post(client.url, client.key, body)[0] == 400


def test_a_body_beyond_the_limit(client: Client) -> None:
    assert post(client.url, client.key, b" " * 2_100_000)[0] == 413
    assert client.queries == 0


def test_a_repeated_request_is_counted_once_and_another_body_is_another(client: Client) -> None:
    one, other = (json.dumps({"input": [text]}).encode() for text in ("a", "b"))
    for body in (one, one, other, one):
        assert post(client.url, client.key, body, **{"Idempotency-Key": "x"})[0] == 200
    assert client.queries == 2


def test_a_quota_is_not_overrun(served: tuple[str, list[str]]) -> None:
    poor = Client(served[0], served[1][-1])
    assert ask(poor, *["a"] * 8)[0] == 200
    status, answer = ask(poor, *["b"] * 3)
    assert status == 402
    assert "allows 2 more" in answer["error"]["message"]
    assert ask(poor, "c", "d")[0] == 200
    assert poor.queries == QUOTA


def test_usage_outlives_the_server(tmp_path: Path) -> None:
    ann = KeyHolder(name="ann", quota=5)
    for round_ in range(2):
        usage = Usage(tmp_path / "usage.sqlite")
        assert usage.of(ann) == 3 * round_
        assert usage.charge(ann, "first", 3) is (round_ == 0)
        with pytest.raises(QuotaSpent, match="allows 2 more"):
            usage.charge(ann, "second", 3)
        assert usage.charge(ann, "third", 2)
        usage.refund(ann, "third", 2)
        usage.close()


def test_metrics_count_requests_and_batches(client: Client) -> None:
    def number(name: str) -> float:
        lines = client.get("/metrics").decode().splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[-1])

    ask(client, "a", "b")
    before = [number(name) for name in ('attar_queries_total{kind="texts"}', "attar_teacher_items")]
    ask(client, "c", "d", "e")
    after = [number(name) for name in ('attar_queries_total{kind="texts"}', "attar_teacher_items")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 3]
    assert client.key not in client.get("/metrics").decode()


def test_it_stays_up_under_200_clients_with_malformed_input_among_them(
    client: Client, local: Teacher
) -> None:
    seen: Counter[str] = Counter()
    want = local.encode_texts(["thing 7"])[0].numpy()
    picture, start = png(random_image(1)), threading.Barrier(200)

    def visit(number: int) -> None:
        start.wait()
        dice = random.Random(number)
        kind = ("text", "image", "bomb", "noise", "half", "hang")[number % 6]
        try:
            if kind == "text":
                status, answer = ask(client, "thing 7")
                np.testing.assert_allclose(answer["data"][0]["embedding"], want, atol=1e-4)
            elif kind == "image":
                status, _ = ask(client, {"image": picture})
            elif kind == "bomb":
                status, _ = ask(client, {"image": bomb()})
            elif kind == "noise":
                status, _ = post(client.url, client.key, dice.randbytes(5000))
            else:
                broken_off(client, hang=kind == "hang")
                status = 0
            seen[f"{kind} {status}"] += 1
        except Exception as error:
            seen[f"{kind} {error!r}"] += 1

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {
        "text 200": 34,
        "image 200": 34,
        "bomb 413": 33,
        "noise 400": 33,
        "half 0": 33,
        "hang 0": 33,
    }
    assert client.queries == 34 + 34
    assert ask(client, "still here")[0] == 200


def broken_off(client: Client, *, hang: bool) -> None:
    """Send a part of a request, and go."""
    with socket.create_connection(urlsplit(client.url).netloc.split(":"), timeout=30) as one:
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\n"
        one.sendall(head.encode() + (b"" if hang else b"Content-Length: 1000\r\n\r\n{"))


def test_a_client_shrinks_an_image_as_the_teacher_would(local: Teacher, tmp_path: Path) -> None:
    advice = find_prepare(local.prepare)
    assert advice is not None
    assert advice.size == 32
    folder = make_hf_clip_folder(tmp_path / "hf")
    for teacher in (local, load_teacher(f"hf:{folder}", torch.device("cpu"))):
        advice = find_prepare(teacher.prepare)
        for size in ((301, 200), (40, 77), (32, 32), (20, 31)):
            image = random_image(5, size)
            small = advice(image)
            assert small.dtype == torch.uint8
            seen = teacher.prepare(Image.fromarray(small.permute(1, 2, 0).numpy()))
            torch.testing.assert_close(seen, teacher.prepare(image), atol=0.06, rtol=0)


def test_a_teacher_that_resizes_wider_than_it_looks(tmp_path: Path) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

    wide = Compose([Resize(40, InterpolationMode.BILINEAR), CenterCrop(32), ToTensor()])
    advice = find_prepare(wide)
    assert (advice.size, advice.fit, advice.interpolation) == (40, "crop", "bilinear")
    squash = Compose([Resize((32, 32), InterpolationMode.BICUBIC), ToTensor()])
    assert find_prepare(squash).fit == "squash"
    assert find_prepare(lambda image: ToTensor()(image.rotate(90).resize((32, 32)))) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("ann", "line 1: write NAME KEY"),
        ("ann secretsecretsecret ten", "line 1: write NAME KEY"),
        ("# all\nann short", "line 2: the key, the second word, is shorter than 16"),
        ("ann secretsecretsecret\nann othersecretsecret", "line 2: its name or its key"),
        ("ann secretsecretsecret\nbob secretsecretsecret", "line 2: its name or its key"),
    ],
)
def test_a_wrong_file_of_keys_is_refused_without_showing_a_key(
    text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "keys.txt").write_text(text)
    with pytest.raises(UsageError, match=words) as error:
        read_keys(tmp_path / "keys.txt")
    assert "secret" not in str(error.value)


def test_wrong_limits_are_refused() -> None:
    with pytest.raises(UsageError, match="max_pixels is 0"):
        ServeConfig(keys=Path("k"), max_pixels=0)
    with pytest.raises(UsageError, match="port is 70000"):
        ServeConfig(keys=Path("k"), port=70000)
