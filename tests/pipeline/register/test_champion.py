"""Which version becomes @champion, also where several trainings register at once."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.register.champion import OPEN, STATE_TAG, champion_of, promote, settled_versions
from pipeline.register.names import check_name
from pipeline.tracking.client import open_client
from tests.support.tracking_runs import new_store


def candidate(client, name: str, top1: float, digest: str = "d1") -> str:
    tags = {"top1": str(top1), "validation_digest": digest, STATE_TAG: OPEN}
    return str(client.create_model_version(name, "s3://nowhere/model", tags=tags).version)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    return open_client(new_store(tmp_path_factory.mktemp("registry")))


def test_champion_is_the_better_one_on_the_same_data(client):
    client.create_registered_model("m")
    for top1, digest, expected in [
        (0.5, "d1", "1"),
        (0.4, "d1", "1"),
        (0.6, "d1", "3"),
        (0.6, "d1", "3"),
        (0.9, "d2", "3"),
    ]:
        settled = settled_versions(client, "m")
        assert promote(client, "m", candidate(client, "m", top1, digest), settled) == expected
    assert champion_of(client, "m") == "3"
    # A champion that a user has set stays until a better version comes; the previous champion does not return.
    client.set_registered_model_alias("m", "champion", "2")
    settled = settled_versions(client, "m")
    assert promote(client, "m", candidate(client, "m", 0.45), settled) == "6"


def test_the_better_of_two_simultaneous_registrations_is_champion(client, monkeypatch):
    """Both orders in which one registration reads before and writes after the other."""
    for slow_top1, fast_top1 in [(0.7, 0.8), (0.8, 0.7)]:
        name = f"race{slow_top1}"
        client.create_registered_model(name)
        settled = settled_versions(client, name)
        slow = candidate(client, name, slow_top1)
        write, held, release = client.set_registered_model_alias, threading.Event(), threading.Event()

        def late(*args, write=write, held=held, release=release):
            if threading.current_thread().name == "slow" and not held.is_set():
                held.set()
                release.wait(60)
            write(*args)

        monkeypatch.setattr(client, "set_registered_model_alias", late)
        thread = threading.Thread(target=promote, args=(client, name, slow, settled), name="slow")
        thread.start()
        assert held.wait(60)
        # The fast registration begins and ends while the slow one waits before its write.
        others_settled = settled_versions(client, name)
        fast = candidate(client, name, fast_top1)
        promote(client, name, fast, others_settled)
        release.set()
        thread.join()
        monkeypatch.undo()
        assert champion_of(client, name) == (slow if slow_top1 > fast_top1 else fast)


@pytest.mark.thorough
def test_the_best_of_many_simultaneous_registrations_is_champion(tmp_path):
    """Eight registrations at once, each with its own connection, four times."""
    uri = new_store(tmp_path)
    clients, order = [open_client(uri) for _ in range(8)], random.Random(0)
    for number in range(4):
        name, start = f"crowd{number}", threading.Barrier(len(clients))
        clients[0].create_registered_model(name)
        scores = order.sample(range(100), len(clients))

        def finish(client, score, name=name, start=start):
            start.wait(60)
            settled = settled_versions(client, name)
            promote(client, name, candidate(client, name, score / 100), settled)

        with ThreadPoolExecutor(len(clients)) as pool:
            list(pool.map(finish, clients, scores))
        champion = clients[0].get_model_version_by_alias(name, "champion")
        assert float(champion.tags["top1"]) == max(scores) / 100


def test_every_accepted_name_can_be_found_in_mlflow_again(client):
    for name in ("transxnet_t-pets", "main.models.transxnet", "Tiere+1", "ä b", "x" * 256):
        check_name(name)
        client.create_registered_model(name)
        candidate(client, name, 0.5)
        assert settled_versions(client, name) == set()
        client.set_registered_model_alias(name, "champion", "1")
        assert champion_of(client, name) == "1"
    for name in ("", " ", "a/b", "a:b", "a@b", "it's", 'a"b', "..", ".hidden", "a ", "a?b", "a%b", "a\n", "x" * 257):
        with pytest.raises(ValueError, match="cannot name a model in MLflow"):
            check_name(name)
