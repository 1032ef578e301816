"""The ledger after crashes, and with others."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from attar.errors import AttarError
from attar.store.config import EmbedConfig
from attar.store.ledger import ANSWERS, LEDGER, PROBES, Ledger
from attar.teachers.remote_asking import BudgetSpent

ROW = np.arange(3, dtype=np.float32)


def test_answers_survive_and_are_forgotten_when_committed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    held = ledger.reserve("image", ["a", "b"])
    assert (ledger.asked, ledger.paid_queries, ledger.unsure) == (2, 0, 2)
    ledger.paid(held, {"a": ROW, "b": ROW + 1})
    again = Ledger(tmp_path)
    assert (again.asked, again.paid_queries, again.unsure) == (2, 2, 0)
    np.testing.assert_array_equal(again.answer("b"), ROW + 1)
    again.forget(["a"])
    assert Ledger(tmp_path).answer("a") is not None  # its file holds b as well
    again.forget(["b", "unknown"])
    assert not list((tmp_path / ANSWERS).iterdir())
    assert Ledger(tmp_path).answer("b") is None
    assert again.request_seconds >= 0


def test_what_a_kill_left_of_an_answer_goes_when_it_is_committed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    held, other = ledger.reserve("image", ["a"]), ledger.reserve("image", ["b"])
    for request in (held, other):  # a process was killed while it wrote both
        (tmp_path / ANSWERS).mkdir(exist_ok=True)
        (tmp_path / ANSWERS / f".{request.id}.npz.1.partial").write_bytes(b"PK")
    again = Ledger(tmp_path)
    (asked_again,) = again.unsettled("image", ["a"])
    again.paid(asked_again, {"a": ROW})
    again.forget(["a"])
    left = [file.name for file in (tmp_path / ANSWERS).iterdir()]
    assert left == [f".{other.id}.npz.1.partial"]  # a process may be at it


@pytest.mark.parametrize("committed", [False, True])
def test_an_answer_is_settled_by_another_while_it_is_read(
    committed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = Ledger(tmp_path)
    held = asking.reserve("image", ["a"])
    (tmp_path / ANSWERS).mkdir()
    np.savez(tmp_path / ANSWERS / f"{held.id}.npz", items=np.array(["a"]), rows=ROW[None])
    load = np.load

    def meanwhile(file: Path) -> object:
        asking.paid(held, {"a": ROW})
        if committed:
            asking.forget(["a"])
        return load(file)

    monkeypatch.setattr(np, "load", meanwhile)
    other = Ledger(tmp_path)
    monkeypatch.undo()
    assert (other.answer("a") is None) == committed
    assert [json.loads(line)["event"] for line in (tmp_path / LEDGER).open()] == ["asked", "paid"]
    assert Ledger(tmp_path).paid_queries == 1


def test_a_line_cut_short_is_ended(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.paid(ledger.reserve("text", ["a"]), {})
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b'{"time": 1, "event": "ask')
    after = Ledger(tmp_path)
    assert after.asked == 1
    after.reserve("text", ["b"])
    ledger.reserve("text", ["c"])
    for one in (ledger, after, Ledger(tmp_path)):
        one.reserve("text", ["d"])
        assert one.asked >= 4
    assert Ledger(tmp_path).asked == 6


def test_an_answer_kept_just_before_a_crash_is_paid(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.paid(ledger.reserve("image", ["a"]), {"a": ROW})
    lines = (tmp_path / LEDGER).read_text().splitlines(keepends=True)
    (tmp_path / LEDGER).write_text(lines[0])
    after = Ledger(tmp_path)
    assert (after.paid_queries, after.unsure) == (1, 0)
    assert after.unsettled("image", ["a"]) == []


def test_a_killed_request_is_counted_and_may_be_sent_again_unchanged(tmp_path: Path) -> None:
    held = Ledger(tmp_path).reserve("image", ["a", "b"])
    after = Ledger(tmp_path)
    assert after.unsure == 2
    assert after.unsettled("text", ["a", "b"]) == []
    assert after.unsettled("image", ["a", "c"]) == []
    assert after.unsettled("image", ["c", "b", "a"]) == [held]
    assert after.unsettled("image", ["a", "b"]) == []
    after.released(held)
    after.released(held)
    assert (after.asked, after.unsure) == (0, 0)


def test_the_budget_ends_and_only_a_last_probe_may_use_the_last_query(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 5)
    assert ledger.reserve("image", list("abc")).items == tuple("abc")
    assert ledger.reserve("image", list("def")).items == ("d",)
    with pytest.raises(BudgetSpent, match="budget of 5 queries is spent: 0 paid, 4 perhaps"):
        ledger.reserve("image", ["e"])
    with pytest.raises(BudgetSpent):  # of a client that comes late
        ledger.reserve("image probe", [""])
    ledger.reserve("image last probe", [""])
    with pytest.raises(BudgetSpent):
        ledger.reserve("text last probe", [""])
    assert Ledger(tmp_path, 7).reserve("image", ["e", "f"]).items == ("e",)


def _spend(folder: Path, paid: bool) -> None:
    ledger = Ledger(folder, 100)
    try:
        while True:
            held = ledger.reserve("image last probe", ["x", "y", "z"])
            if paid:
                ledger.paid(held, {})
    except BudgetSpent:
        pass


def test_processes_share_one_budget_to_the_last_query(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_spend, args=(tmp_path, n > 0)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    ledger = Ledger(tmp_path)
    assert ledger.asked == 100
    lines = (tmp_path / LEDGER).read_text().splitlines()
    assert all(json.loads(line)["queries"] in (1, 3) for line in lines)


def test_broken_files_are_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.keep_probe("text", ROW)
    np.testing.assert_array_equal(Ledger(tmp_path).probes()["text"], ROW)
    (tmp_path / PROBES).write_text("[1]")
    with pytest.raises(AttarError, match=r"probes\.json is broken"):
        ledger.probes()
    (tmp_path / ANSWERS).mkdir()
    (tmp_path / ANSWERS / "1.npz").write_bytes(b"no")
    with pytest.raises(AttarError, match=r"1\.npz is broken"):
        Ledger(tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"budget": 2.5}, "give a whole number"),
        ({"price": -1.0}, "price is -1"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"parallel": 0}, "parallel is 0"),
    ],
)
def test_wrong_amounts_are_refused(values: dict, words: str) -> None:
    with pytest.raises(AttarError, match=words):
        EmbedConfig(**values)


def test_a_budget_of_money_counts_whole_queries() -> None:
    assert EmbedConfig(budget=1.0, price=0.1).query_limit == 10
    assert EmbedConfig(budget=0.29, price=0.1).query_limit == 2
    assert EmbedConfig(budget=7).query_limit == 7
    assert EmbedConfig().query_limit is None
