import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.processes import command, wait_until
from tests.language.chat_server import chat_server, sentence

from attar.cli.main import main
from attar.data.classes import make_class_list, read_class_list
from attar.errors import UsageError
from attar.http import retry_after
from attar.language.answers import AnswerLog, answers_path
from attar.language.chat import KEY_VARIABLES, read_answer
from attar.language.config import INSTRUCTIONS, DescribeConfig
from attar.language.describe import Undescribed, describe

NAMES = [f"class_{number}" for number in range(12)]
SAID = [name.replace("_", " ") for name in NAMES]
"""As the model is asked about them."""


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in KEY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def config_of(server, **options) -> DescribeConfig:
    fast = {"backoff": 0.01, "parallel": 3, "timeout": 20.0, "model": "tiny"}
    return DescribeConfig(endpoint=server.endpoint, **{**fast, **options})


def kept(out: Path) -> list[dict]:
    return [json.loads(line) for line in answers_path(out).read_text().splitlines()]


def test_every_mishap_ends_in_a_description_that_is_paid_once(tmp_path: Path) -> None:
    mishaps = {
        SAID[0]: ["wait:0.3", "status:500", "broken", "drop"],
        SAID[1]: ["half", "status:503", "empty"],
        SAID[2]: ["other", "drop", "drop", "wait:0"],
        SAID[3]: ["sleep:1.5"],
    }
    out = tmp_path / "described.json"
    with chat_server(mishaps, delay=0.02) as server:
        config = config_of(server, timeout=0.8)
        assert describe(make_class_list(NAMES), "llm", out, config) == out
        assert server.answered == dict.fromkeys(SAID, 1)
        assert {name: server.asked[name] - 1 for name in SAID} == {
            name: len(mishaps.get(name, ())) for name in SAID
        }
        assert 1 < server.most_at_once <= 3
        waited = server.times[SAID[0]]
        assert waited[1] - waited[0] >= 0.3, "Retry-After"
        assert server.prompts == {INSTRUCTIONS["paper"].format(cls=name) for name in SAID}
        before = server.asked.copy()
        out.unlink()
        describe(make_class_list([*NAMES, "new"]), "llm", out, config)
        assert server.asked - before == {"new": 1}, "only the new class is asked about"
    described = read_class_list(out)
    assert described.names == (*NAMES, "new")
    assert described.descriptions == tuple((sentence(name),) for name in [*SAID, "new"])
    lines = kept(out)
    assert sum(bool(line["text"]) for line in lines) == 13
    assert {line["problem"] for line in lines} == {
        "",
        "broken JSON",
        "an empty answer",
        "an answer of another form than chat",
    }
    one = next(line for line in lines if line["class"] == NAMES[5])
    assert one["answer"]["choices"][0]["message"]["content"] == sentence(SAID[5])
    assert one["model"] == "tiny"
    assert one["endpoint"] == config.endpoint
    assert one["instruction"] == INSTRUCTIONS["paper"]
    assert one["time"].endswith("Z")


def test_what_fails_is_named_and_asked_again_by_the_next_call(tmp_path: Path, caplog) -> None:
    out = tmp_path / "described.json"
    mishaps = {SAID[1]: ["status:500"] * 3, SAID[4]: ["status:400"], SAID[7]: ["wait:9999"]}
    with chat_server(mishaps) as server:
        config = config_of(server, attempts=3)
        with pytest.raises(Undescribed) as failure:
            describe(make_class_list(NAMES), "llm", out, config)
        assert failure.value.exit_status == 1
        assert set(failure.value.failed) == {NAMES[1], NAMES[4], NAMES[7]}
        assert "HTTP 500" in failure.value.failed[NAMES[1]]
        assert f"HTTP 400 Bad Request: no luck with {SAID[4]}" in failure.value.failed[NAMES[4]]
        assert all(name in caplog.text for name in failure.value.failed)
        assert (server.asked[SAID[1]], server.asked[SAID[4]], server.asked[SAID[7]]) == (3, 1, 1)
        described = dict(zip(NAMES, read_class_list(out).descriptions, strict=True))
        assert {name for name in NAMES if not described[name]} == set(failure.value.failed)
        describe(make_class_list(NAMES), "llm", out, config)
        assert server.answered == dict.fromkeys(SAID, 1)
    assert all(read_class_list(out).descriptions)


@pytest.mark.parametrize(
    ("step", "way_out"),
    [
        ("status:401", "ATTAR_LLM_API_KEY"),
        ("status:403", "may not use"),
        ("status:404", "--endpoint"),
        ("redirect:http://127.0.0.1:9/v1", "redirects to http://127.0.0.1:9/v1"),
    ],
)
def test_what_every_request_would_meet_stops_at_once(
    tmp_path: Path, step: str, way_out: str
) -> None:
    with chat_server({"*": [step]}) as server:
        with pytest.raises(UsageError, match=way_out):
            describe(make_class_list(NAMES), "llm", tmp_path / "out.json", config_of(server))
        assert sum(server.asked.values()) <= 3  # one of each thread
    assert not (tmp_path / "out.json").exists()


def test_an_endpoint_that_never_answers_is_given_up(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(60)]
    with chat_server({"*": ["status:500"]}) as server:
        config = config_of(server, attempts=1, parallel=2)
        with pytest.raises(Undescribed) as failure:
            describe(make_class_list(names), "llm", tmp_path / "out.json", config)
        assert set(failure.value.failed) == set(names)
        assert sum(server.asked.values()) < 30


def test_kill_and_go_on(tmp_path: Path) -> None:
    classes, out = tmp_path / "classes.txt", tmp_path / "described.json"
    classes.write_text("\n".join(NAMES))
    log = answers_path(out)
    with chat_server({SAID[2]: ["status:500"], SAID[5]: ["drop"]}, delay=0.1) as server:
        words = ["describe", classes, "--source=llm", "--model=tiny", f"--out={out}"]
        words += [f"--endpoint={server.endpoint}", "--parallel=2", "--backoff=0.01"]
        with command(*words, folder=tmp_path / "first") as process:
            wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 3, process)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert not out.exists()
        paid = {line["class"].replace("_", " ") for line in kept_whole(log)}
        assert 3 <= len(paid) < len(NAMES)
        with log.open("ab") as file:  # as a kill in the middle of a write leaves it
            file.write(b'{"class": "class_11", "text": "half a li\xc3')
        with command(*words, folder=tmp_path / "second") as process:
            assert process.wait(120) == 0, (tmp_path / "second" / "err").read_text()
        assert all(server.answered[name] == 1 for name in paid), "paid twice"
        assert all(1 <= server.answered[name] <= 2 for name in SAID)
        assert sum(server.answered.values()) <= len(NAMES) + 2, "more than was under way"
    assert read_class_list(out).descriptions == tuple((sentence(name),) for name in SAID)
    assert sorted(line["class"] for line in kept_whole(log)) == sorted(NAMES)


def kept_whole(log: Path) -> list[dict]:
    with AnswerLog(log) as answers:
        return list(answers.matching({"model": "tiny"}))


def test_another_question_is_another_answer(tmp_path: Path) -> None:
    out = tmp_path / "described.json"
    classes = make_class_list(["cat", "dog"])
    with chat_server() as server:
        for options in ({}, {"instruction": "distinct"}, {"model": "big"}, {"temperature": 0.0}):
            describe(classes, "llm", out, config_of(server, **options))
            describe(classes, "llm", out, config_of(server, **options))
        assert server.answered == {"cat": 4, "dog": 4}
        assert INSTRUCTIONS["distinct"].format(cls="dog") in server.prompts


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "described.json"
    with chat_server() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "second-secret")
        describe(make_class_list(["a", "b"]), "llm", out, config_of(server))
        assert server.keys == {"Bearer second-secret"}
        monkeypatch.setenv("ATTAR_LLM_API_KEY", "first-secret")
        describe(make_class_list(["c", "d"]), "llm", out, config_of(server))
        assert server.keys == {"Bearer second-secret", "Bearer first-secret"}
    assert "secret" not in answers_path(out).read_text()


def test_the_command_names_the_failed_and_exits_with_1(tmp_path: Path, capfd) -> None:
    classes, out = tmp_path / "classes.txt", tmp_path / "described.json"
    classes.write_text("cat\nwolf hound\n")
    words = ["describe", str(classes), "--source=llm", "--model=m", f"--out={out}"]
    with chat_server({"wolf hound": ["status:400"]}) as server:
        with pytest.raises(SystemExit) as stopped:
            main([*words, f"--endpoint={server.endpoint}"])
        assert stopped.value.code == 1
        printed = capfd.readouterr()
        assert "1 of 2 classes described" in printed.out
        assert "wolf hound" in printed.err
        with pytest.raises(SystemExit) as stopped:
            main([*words, f"--endpoint={server.endpoint}"])
        assert stopped.value.code == 0
    assert all(read_class_list(out).descriptions)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": None}, "--model"),
        ({"endpoint": "localhost:11434"}, "http"),
        ({"endpoint": "http://user:key@localhost/v1"}, "without a key"),
    ],
)
def test_wrong_use(tmp_path: Path, options: dict, said: str) -> None:
    config = DescribeConfig(**{"model": "m", **options})
    with pytest.raises(UsageError, match=said):
        describe(make_class_list(["a", "b"]), "llm", tmp_path / "out.json", config)
    assert not list(tmp_path.iterdir())


def test_wrong_configuration() -> None:
    with pytest.raises(UsageError, match="did you mean 'succinct'"):
        DescribeConfig(instruction="suckinct")
    with pytest.raises(UsageError, match=r"lacks \{cls\}"):
        DescribeConfig(instruction="Describe the thing.")
    assert DescribeConfig(instruction="What is {cls}?").instruction_text == "What is {cls}?"
    with pytest.raises(UsageError, match="--parallel is 0"):
        DescribeConfig(parallel=0)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        AnswerLog(tmp_path / "log"),
        pytest.raises(UsageError, match="another process"),
        AnswerLog(tmp_path / "log"),
    ):
        pass


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("It is\n round.", "It is round."),
        ('"It is round."', "It is round."),
        ("<think>What\nis it?</think>\nIt is round.", "It is round."),
        ("<think>What is it? It", ""),
        ("…", ""),
        (None, ""),
    ],
)
def test_what_an_answer_says(content: str | None, text: str) -> None:
    document = {"choices": [{"message": {"content": content}}]}
    answer = read_answer(json.dumps(document).encode())
    assert answer.text == text
    assert bool(answer.problem) == (not text)
    assert answer.body == document


def test_retry_after() -> None:
    assert retry_after("7") == 7
    assert retry_after("-1") == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2099 07:28:00 GMT") > 1e9
    assert retry_after("soon") is None
    assert retry_after(None) is None


def test_a_cut_answer_is_said(tmp_path: Path, caplog) -> None:
    with chat_server({"cat": ["answer:The cat is …"]}) as server:
        describe(make_class_list(["cat", "dog"]), "llm", tmp_path / "out.json", config_of(server))
    assert "1 answers end at the limit of tokens: cat" in caplog.text


def test_no_torch_for_descriptions() -> None:
    code = (
        "import sys, attar.language.describe, attar.cli.describe; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
