"""A served teacher, a store that pays for it, and a bad network between them."""

import base64
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.remote.conftest import Client
from tests.remote.proxy import FAULTS, proxy, sometimes
from tests.store.samples import table_of

from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.errors import AttarError, UsageError
from attar.stages.embedding import consult, refuse_to_pay
from attar.store.config import EmbedConfig
from attar.store.cost import embed_cost
from attar.store.embed import SET_ASIDE, embed_images, embed_texts
from attar.store.ledger import ANSWERS, LEDGER, Ledger
from attar.store.paying import pace_of
from attar.store.store import Store, store_info
from attar.store.verify import verify_store
from attar.teachers import remote_address
from attar.teachers.base import Teacher, Unanswered
from attar.teachers.registry import load_teacher
from attar.teachers.remote import TeacherChanged
from attar.teachers.remote_asking import BudgetSpent

CONFIG = EmbedConfig(batch_size=16, workers=0, request_size=4, parallel=3, backoff=0.01, attempts=8)
TEXTS = ["a photo of a dog", "a photo of a cat", "a horse", "", "ünïcode 🐎"][:3]
SHAPES = ("attar", "infinity", "jina")


def fill(url: str, table: ImageTable, store: Path, config: EmbedConfig = CONFIG) -> Store:
    """Embed as a fresh process would."""
    teacher = load_teacher(url)
    embed_images(teacher, table, store, config)
    embed_texts(teacher, TEXTS, store, config)
    return Store.open(store)


def lines(store: Path) -> list[dict]:
    return [json.loads(line) for line in (store / LEDGER).read_text().splitlines()]


def paid(store: Path, kind: str) -> list[str]:
    """Return the digests of all paid questions of a kind."""
    done = {line["id"] for line in lines(store) if line["event"] == "paid"}
    asked = [line for line in lines(store) if line["event"] == "asked" and line["id"] in done]
    return [item for line in asked if line["kind"] == kind for item in line["items"]]


def assert_local(store: Store, table: ImageTable, local: Teacher) -> None:
    """The store holds what the local teacher says of the files themselves."""
    pixels = torch.stack([local.prepare(read_image(path)) for path in table.paths])
    for got, want in (
        (store.image_features(store.image_rows(table.keys)), local.encode_images(pixels)),
        (store.text_features(TEXTS), local.encode_texts(TEXTS)),
    ):
        unit = (want / want.norm(dim=1, keepdim=True)).numpy()
        np.testing.assert_allclose(got.astype(np.float32), unit, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_faults_every_shape_gives_the_local_embeddings(
    shape: str, client: Client, local: Teacher, make_images: Callable, tmp_path: Path
) -> None:
    table, options = make_images(21), "" if shape == "attar" else f"?shape={shape}&size=32"
    interpolation = "" if shape == "attar" else "&interpolation=bilinear"
    store = fill(f"{client.url}#tiny{options}{interpolation}", table, tmp_path / "store")
    assert_local(store, table, local)
    ledger = Ledger(tmp_path / "store")
    assert (ledger.paid_queries, ledger.unsure) == (client.queries, 0)
    assert client.queries == 21 + 3 + 4 + 2  # images, texts, first probes, one a commit
    assert store_info(tmp_path / "store")["paid_queries"] == client.queries
    assert not list((tmp_path / "store" / ANSWERS).iterdir())


def test_through_every_fault_each_image_is_paid_once(
    client: Client, local: Teacher, make_images: Callable, tmp_path: Path
) -> None:
    table = make_images(150)
    with proxy(client.url, sometimes(0.5)) as between:
        store = fill(f"{between.url}#tiny", table, tmp_path / "store")
        assert set(FAULTS) <= set(between.met)
    assert_local(store, table, local)
    assert not (tmp_path / "store" / SET_ASIDE).exists()
    ledger = Ledger(tmp_path / "store")
    assert (ledger.paid_queries, ledger.unsure) == (client.queries, 0)
    assert set(Counter(paid(tmp_path / "store", "image")).values()) == {1}
    assert len(paid(tmp_path / "store", "image")) == 150


def test_a_vendor_that_bills_every_attempt_is_never_undercounted(
    client: Client, local: Teacher, make_images: Callable, tmp_path: Path
) -> None:
    table = make_images(60)
    with proxy(client.url, sometimes(0.4, seed=1)) as between:
        url = f"{between.url}#tiny?shape=infinity&size=32&interpolation=bilinear"
        store = fill(url, table, tmp_path / "store")
    assert_local(store, table, local)
    ledger = Ledger(tmp_path / "store")
    assert ledger.paid_queries <= client.queries <= ledger.asked


def test_what_the_server_refuses_is_named_and_the_others_go_on(
    client: Client, local: Teacher, make_images: Callable, tmp_path: Path
) -> None:
    table, store = make_images(20), tmp_path / "store"
    with proxy(client.url) as between:
        teacher = load_teacher(f"{between.url}#tiny")
        for row in (5, 6, 13):
            question = teacher.image_question(teacher.prepare(read_image(table.paths[row])))
            between.poison.add(base64.b64encode(question).decode())
        embed_images(teacher, table, store, CONFIG)
        entries = json.loads((store / SET_ASIDE).read_text())
        assert [entry["path"] for entry in entries] == [table.paths[row] for row in (5, 6, 13)]
        assert "I do not like this picture" in entries[0]["reason"]
        with pytest.raises(AttarError, match="no answer to 3 of 20 images") as refused:
            consult(teacher, table, [], store, CONFIG)
        assert table.paths[5] in str(refused.value)
        held = Store.open(store).has_images(table.keys)
        assert np.flatnonzero(~held).tolist() == [5, 6, 13]
        assert Ledger(store).paid_queries == Ledger(store).asked == client.queries
        between.poison.clear()
        assert_local(fill(f"{between.url}#tiny", table, store), table, local)
    assert len(paid(store, "image")) == 20
    assert json.loads((store / SET_ASIDE).read_text()) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_the_budget_holds_at_the_servers_count_and_the_run_resumes(
    shape: str, client: Client, local: Teacher, make_images: Callable, tmp_path: Path
) -> None:
    table, store = make_images(40), tmp_path / "store"
    options = "" if shape == "attar" else f"?shape={shape}&size=32&interpolation=bilinear"
    with proxy(client.url, sometimes(0.3, seed=2)) as between:
        for budget in (3, 17, 30):
            with pytest.raises(BudgetSpent, match=f"budget of {budget} queries"):
                fill(f"{between.url}#tiny{options}", table, store, replace(CONFIG, budget=budget))
            assert client.queries <= Ledger(store).asked <= budget
        last = fill(f"{between.url}#tiny{options}", table, store, replace(CONFIG, budget=1000))
    assert_local(last, table, local)
    if shape == "attar":
        assert Counter(paid(store, "image")).most_common(1)[0][1] == 1
        assert Ledger(store).paid_queries == client.queries


def test_a_budget_of_money(client: Client, make_images: Callable, tmp_path: Path) -> None:
    config = replace(CONFIG, budget=0.0125, price=0.0005)
    assert config.query_limit == 25
    with pytest.raises(BudgetSpent, match="budget of 25 queries"):
        fill(f"{client.url}#tiny", make_images(40), tmp_path / "store", config)
    # What the budget allowed is in the store: the last query was the probe before the commit.
    assert client.queries == 25
    assert Store.open(tmp_path / "store").num_images == 25 - 4 - 1


@pytest.mark.parametrize("late", [False, True])
def test_two_clients_of_one_store_share_its_budget(
    client: Client, make_images: Callable, tmp_path: Path, late: bool
) -> None:
    tables = [make_images(60), make_images(60, "others", 100)]
    store, stopped = tmp_path / "store", []

    def ask(table: ImageTable) -> None:
        teacher = load_teacher(f"{client.url}#tiny")
        teacher.bind(Ledger(store, 50), pace_of(CONFIG))
        pixels = torch.stack([teacher.prepare(read_image(path)) for path in table.paths])
        try:
            teacher.encode_images(pixels)
        except Unanswered as error:
            stopped.append(error.cause)
        except BudgetSpent as error:  # spent by the other before this one met the teacher
            stopped.append(error)

    threads = [threading.Thread(target=ask, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
        if late:
            thread.join()
    for thread in threads:
        thread.join()
    assert [type(cause) for cause in stopped] == [BudgetSpent, BudgetSpent]
    ledger = Ledger(store)
    assert client.queries == ledger.paid_queries == ledger.asked == 49  # one is kept back
    assert set(Counter(paid(store, "image")).values()) == {1}


def test_an_image_is_paid_once_under_any_name_and_in_the_next_project(
    client: Client, make_images: Callable, tmp_path: Path
) -> None:
    table, url = make_images(10), f"{client.url}#tiny"
    fill(url, table, tmp_path / "store")
    before = client.queries
    Path(table.paths[0]).rename(tmp_path / "images" / "renamed.png")
    project = tmp_path / "next"
    shutil.copytree(tmp_path / "images", project)
    fill(
        url, table_of(project, sorted(path.name for path in project.iterdir())), tmp_path / "store"
    )
    assert client.queries == before


def test_a_changed_model_stops_the_run_and_none_of_it_is_stored(
    client: Client, local: Teacher, make_images: Callable, tmp_path: Path
) -> None:
    table, store = make_images(40), tmp_path / "store"
    config = replace(CONFIG, shard_rows=16)
    with proxy(client.url) as between:

        def change_later() -> str:
            between.change = 0.3 if sum(between.met.values()) > 4 + 4 + 1 + 2 else 0.0
            return ""

        between.choose = change_later
        with pytest.raises(TeacherChanged, match="has changed: its answer to the probe image"):
            fill(f"{between.url}#tiny", table, store, config)
        assert Store.open(store).num_images == 16
        with pytest.raises(TeacherChanged, match="has changed"):
            fill(f"{between.url}#tiny", table, store, config)
        between.choose, between.change = (lambda: ""), 0.0
        assert_local(fill(f"{between.url}#tiny", table, store, config), table, local)


def test_a_teacher_of_moods_is_refused(
    client: Client, make_images: Callable, tmp_path: Path
) -> None:
    with proxy(client.url) as between:

        def wander() -> str:
            between.change += 0.2
            return ""

        between.choose = wander
        with pytest.raises(AttarError, match="two different answers to the same image"):
            fill(f"{between.url}#tiny", make_images(3), tmp_path / "store")


def test_another_model_is_another_store(
    client: Client, make_images: Callable, tmp_path: Path
) -> None:
    table = make_images(3)
    fill(f"{client.url}#tiny", table, tmp_path / "store")
    before = client.queries
    with pytest.raises(UsageError, match="holds embeddings of teacher"):
        fill(f"{client.url}#tiny?size=48", table, tmp_path / "store")
    assert client.queries == before


def test_the_dry_run_asks_nothing_and_says_what_the_run_will_cost(
    client: Client, make_images: Callable, tmp_path: Path
) -> None:
    table, store = make_images(70), tmp_path / "store"
    config = replace(CONFIG, shard_rows=32, price=0.002)
    with proxy(client.url) as between:
        url = f"{between.url}#tiny"
        for part in (table.select(range(50)), table):
            cost = embed_cost(load_teacher(url), part, store, config, TEXTS)
            assert between.bytes == 0
            before = client.queries
            fill(url, part, store, config)
            assert client.queries - before == cost.queries
            assert cost.money == pytest.approx(cost.queries * 0.002)
            assert cost.upload_bytes == pytest.approx(between.bytes, rel=0.01)
            between.bytes = 0
        assert embed_cost(load_teacher(url), table, store, config, TEXTS).queries == 0
        assert "0 queries" in str(embed_cost(load_teacher(url), table, store, config, TEXTS))


def test_a_dry_run_of_a_service_that_tells_nothing_is_refused(
    client: Client, make_images: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dimension would have to be paid for; a store of it knows it."""
    models = remote_address._models

    def as_others_list_them(address: object) -> object:
        data = [{k: v for k, v in one.items() if k != "attar"} for one in models(address)["data"]]
        return {"data": data}

    monkeypatch.setattr(remote_address, "_models", as_others_list_them)
    spec = f"{client.url}#tiny?shape=infinity&size=32&interpolation=bilinear"
    before = client.queries
    with pytest.raises(UsageError, match="a dry run asks nothing"):
        refuse_to_pay(spec, tmp_path / "store")
    assert client.queries == before
    assert not (tmp_path / "store").exists()
    fill(spec, make_images(2), tmp_path / "store")
    before = client.queries
    refuse_to_pay(spec, tmp_path / "store")
    refuse_to_pay("pocket", tmp_path / "nowhere")
    assert client.queries == before


def test_verifying_asks_again_and_pays(
    client: Client, make_images: Callable, tmp_path: Path
) -> None:
    table, store = make_images(6), tmp_path / "store"
    fill(f"{client.url}#tiny", table, store)
    before = client.queries
    report = verify_store(store, load_teacher(f"{client.url}#tiny"), table)
    assert report.worst_cosine > 0.999
    assert client.queries == before + 6 + 3 + 2 == Ledger(store).paid_queries
    assert not list((store / ANSWERS).iterdir())


def test_nothing_else_may_ask_a_teacher_that_is_paid(client: Client) -> None:
    teacher = load_teacher(f"{client.url}#tiny")
    with pytest.raises(UsageError, match="answers into a store"):
        teacher.encode_texts(["a dog"])
    assert client.queries == 0


def test_a_dead_server_is_given_up(client: Client, make_images: Callable, tmp_path: Path) -> None:
    config = replace(CONFIG, attempts=2, request_size=1)
    with proxy(client.url) as between:
        url = f"{between.url}#tiny"
        teacher = load_teacher(url)
        asked = iter(range(1000))
        between.choose = lambda: "" if next(asked) < 4 else "500"
        with pytest.raises(AttarError, match=r"5 requests in a row without an answer.*HTTP 500"):
            embed_images(teacher, make_images(40), tmp_path / "store", config)
        assert next(asked) < 40
