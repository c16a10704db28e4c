"""omniglot.py --table: the order of its work, what is not done twice, and trainings that go on from where they were killed."""

import importlib
import itertools
import json
import sys
import types

import pytest
import torch

from fastmeta.data import TaskSampler, sample_episodes
from harness.archives import characters, write
from harness.places import ROOT

pytestmark = pytest.mark.cpu
MODULES = (
    "budget",
    "checkpoint",
    "common",
    "few_shot",
    "learners",
    "omniglot",
    "persist",
    "recipes",
    "records",
    "table",
)
IMAGES = torch.rand(8, 20, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def examples():
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)  # another folder's
        yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    torch.set_num_threads(threads)


@pytest.fixture
def table(examples, tmp_path, monkeypatch):
    """Runs the command on small archives; the rows of its two files."""
    small1 = {f"Alphabet{n}": 4 for n in range(3)}
    for archive, layout in (
        ("images_background_small1", small1),
        ("images_background_small2", dict.fromkeys(examples.omniglot.UNSEEN, 2)),
    ):
        write(tmp_path, archive, characters(archive, layout))
    axes = {"protonet": {"lr": (1e-3, 2e-3), "ways": (2, 3)}, "leo": {"lr": (0.01,)}, "maml": {"inner_lr": (0.1, 0.4)}}
    monkeypatch.setattr(examples.recipes, "SEARCH", axes)

    def run(*words):
        options = ["--root", tmp_path, "--table", "--hidden", 4, "--ways", 2, 3, "--budget", 0.05, "--episodes", 3]
        options += ["--results", tmp_path / "table.json", "--work", tmp_path / "work", *words]
        args = examples.omniglot.options().parse_args([*map(str, options)])
        examples.omniglot.main(args)
        return [examples.records.load(tmp_path / name) for name in ("table.json", "table_search.json")]

    return run


def test_the_table_is_made_once(examples, table, tmp_path, capsys, monkeypatch):
    words = ["--only", "leo", "maml", "--ways", 3]
    rows, log = table(*words)
    found = [(row["learner"], row["trained_ways"], row["seed"], row["ways"], row["shots"]) for row in rows]
    assert found == [
        *(("protonet", 3, 0, 3, shots) for shots in (1, 5)),  # LEO's, before it
        *(("leo", 3, 0, 3, shots) for shots in (1, 5)),
        *(("maml", 3, seed, 3, shots) for seed in range(3) for shots in (1, 5)),
    ]
    kept = [path.name for path in (tmp_path / "work").iterdir()]  # LEO's embeddings, and no checkpoint
    assert len(kept) == 4 + 3 + 1 and all(name.startswith("protonet-3") and name.endswith(".pt") for name in kept)
    for row in rows:
        best = [r for r in log if (r["learner"], r["trained_ways"]) == (row["learner"], row["trained_ways"])]
        last = [r for r in best if r["budget"] == round(0.05 / 8, 4)]
        assert (
            len(last) == {"protonet": 3, "leo": 1, "maml": 2}[row["learner"]]
            and row["recipe"] == max(last, key=lambda r: r["accuracy"][0])["recipe"]
        )
        assert row["episodes"] == 3 and row["steps"] > 0 and row["budget"] == 0.05 <= row["seconds"] + 0.05
    capsys.readouterr()
    monkeypatch.setattr(examples.table.Table, "run", None)
    assert table(*words) == [rows, log]
    assert "leo" in capsys.readouterr().out


def test_what_another_process_has_is_left_to_it(examples, table, tmp_path, monkeypatch):
    """It comes back when the other is gone, with what it has not done."""
    monkeypatch.setitem(examples.recipes.SEARCH, "protonet", {"lr": (1e-3, 2e-3)})
    begun = []
    own = examples.table.Table.run
    monkeypatch.setattr(examples.table.Table, "run", lambda self, job: begun.append(job) or own(self, job))
    log = table("--only", "protonet")[1]
    first = begun[0]
    (tmp_path / "table.json").unlink()
    (tmp_path / "table_search.json").write_text(json.dumps(log[1:]))
    held = examples.persist.claim(tmp_path / "work" / first.name, wait=False)
    assert held.__enter__()
    with examples.persist.claim(tmp_path / "work" / first.name, wait=False) as mine:
        assert not mine
    monkeypatch.setattr(examples.table.time, "sleep", lambda seconds: held.__exit__(None, None, None))
    begun.clear()
    assert len(table("--only", "protonet")[1]) == len(log) and begun[0] == first
    begun.clear()
    table("--only", "protonet", "--ways", 3)  # fewer tests of the same trainings
    assert begun == []


def training(examples, learner="protonet", **options):
    torch.manual_seed(0)
    model = examples.learners.build(learner, ways=2, hidden=4, **({"dropout": 0.5} if learner == "leo" else {}))
    sampler = TaskSampler(lambda count, g: sample_episodes(IMAGES, count, 2, 1, 1, generator=g), 2)
    settings = {"seconds": 1.0, "lr": 1e-2, "outer": "adam", "rate_lr": 1.0, "noise": 3} | options
    return examples.budget.Training(model, sampler, **settings)


@pytest.mark.parametrize("learner, options", [("leo", {}), ("meta-sgd", {"rate_lr": 0.1})])
def test_a_killed_training_goes_on(examples, tmp_path, monkeypatch, learner, options):
    """To the same weights, by a clock that counts the steps, whenever it is killed; with the seconds that it had spent."""
    step = examples.budget.meta_step

    def trained(path, kills):
        clock = itertools.count(step=0.125)
        monkeypatch.setattr(examples.budget.time, "process_time", lambda: next(clock) / 2)
        for left in (*kills, None):
            steps = itertools.count()

            def killed(*args, left=left, steps=steps):
                if next(steps) == left:
                    raise KeyboardInterrupt
                return step(*args)

            monkeypatch.setattr(examples.budget, "meta_step", killed)
            found = training(examples, learner, **options)
            try:
                found.run(path, every=0.01)
            except KeyboardInterrupt:
                continue
            return found

    whole, killed = trained(tmp_path / "a.pt", ()), trained(tmp_path / "b.pt", (0, 3, 1))
    assert whole.step == killed.step > 5 and whole.spent == killed.spent >= 1.0
    for name, value in whole.learner.state_dict().items():
        assert torch.equal(value, killed.learner.state_dict()[name]), name
    again = training(examples, learner, **options)
    again.run(tmp_path / "a.pt")  # it is over
    assert again.step == whole.step


def test_a_training_that_diverges_ends(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(examples.budget, "meta_step", lambda *args: torch.tensor(float("nan")))
    for _ in range(2):
        found = training(examples)
        found.run(tmp_path / "a.pt")
        assert found.diverged and found.step == 1


def test_a_damaged_checkpoint_is_told(examples, tmp_path):
    path = tmp_path / "a.pt"
    training(examples, seconds=1e-9).run(path)
    sound = examples.persist.load(path)
    weight = next(iter(sound["learner"]))
    for wrong, said in (
        (sound | {"step": 0}, "step from 1 to"), (sound | {"spent": float("nan")}, "spent and diverged"),
        (sound | {"more": 1}, "without 'more'"),
        (sound | {"learner": sound["learner"] | {weight: sound["learner"][weight] * torch.nan}}, "finite"),
        (sound | {"sampler": {"seed": 0, "next": 7}}, "sampler.next 2"), (sound | {"optimiser": {}}, "optimiser.state with names"),
        (sound | {"settings": sound["settings"] | {"lr": 2.0}}, "settings.lr 0.01"), ([], "a training with names"),
    ):  # fmt: skip
        examples.persist.save(path, wrong)
        with pytest.raises(ValueError, match=f"{path} must hold .*{said}"):
            training(examples, seconds=1e-9).run(path)
