"""The commands of docs/reproductions.md: what they put into the files of results, and that pages and pictures are those files'."""

import math
import re

import lake as of_lake
import lake_table
import learners
import omniglot as of_omniglot
import practice
import pytest
import records
import runs
import sinusoid
import strokes
import torch

from harness.archives import characters, drawing, write
from harness.places import ROOT
from pages import inner_loops_page, reached, reproductions


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def omniglot(tmp_path_factory):
    """Runs the command, with a tiny budget, on archives of 5 and 3 small alphabets; the rows of its file of results."""
    root = tmp_path_factory.mktemp("omniglot")
    small1 = {f"Alphabet{n}": 5 for n in range(5)}
    for archive, layout in (
        ("images_background_small1", small1),
        ("images_background_small2", dict.fromkeys(of_omniglot.UNSEEN, 7)),
    ):
        write(root, archive, characters(archive, layout))

    def run(out, *words):
        common = ["--root", root, "--hidden", 4, "--tasks", 2, "--steps", 2, "--eval-tasks", 4, "--results", out]
        args = of_omniglot.options().parse_args([*map(str, (*common, *words))])
        torch.manual_seed(args.seed)
        of_omniglot.main(args)
        return records.load(out)

    run.root = root
    return run


def test_every_learner_gets_a_row(omniglot, tmp_path):
    out, saved = tmp_path / "new" / "results.json", tmp_path / "protonet.pt"
    omniglot(out, "--learner", "protonet", "--ways", 3, 5, "--shots", 1, 2, "--save", saved)
    for learner in of_omniglot.RECIPES:
        if learner != "protonet":
            omniglot(out, "--learner", learner, *(["--embedding", saved] if learner == "leo" else []))
    rows = records.load(out)
    assert [(row["ways"], row["shots"]) for row in rows[:4]] == [(3, 1), (3, 2), (5, 1), (5, 2)]
    assert [row["learner"] for row in rows[4:]] == [name for name in of_omniglot.RECIPES if name != "protonet"]
    assert {*of_omniglot.RECIPES} == {*learners.OF_IMAGES} == {*reproductions.NAMES}
    for row in rows:
        mean, half_width = row["accuracy"]
        assert 0 <= mean <= 100 and math.isfinite(half_width) and row["seconds"] >= 0 and row["network"] == "Conv4-4"
        assert row["recipe"]["tasks"] == row["recipe"]["steps"] == 2
    assert rows[-1]["learner"] == "leo" and rows[-1]["embedding"]["learner"] == "protonet"


def test_a_repeated_training_is_the_same_and_takes_the_place_of_its_row(omniglot, tmp_path):
    first, again, other = (
        omniglot(tmp_path / "results.json", "--learner", "maml", "--seed", seed) for seed in (0, 0, 1)
    )
    assert [row["seed"] for row in other] == [0, 1] and len(again) == 1
    assert first[0] | {"seconds": 0} == again[0] | {"seconds": 0}


def test_leo_leaves_the_embedding_as_it_was(omniglot, tmp_path):
    omniglot(tmp_path / "results.json", "--learner", "protonet", "--save", tmp_path / "protonet.pt")
    options = ["--learner", "leo", "--embedding", tmp_path / "protonet.pt", "--save", tmp_path / "leo.pt"]
    omniglot(tmp_path / "results.json", *options)
    encoder, leo = (of_omniglot.load(tmp_path / f"{name}.pt")[0] for name in ("protonet", "leo"))
    for name, value in encoder.encoder.state_dict().items():
        assert torch.equal(value, leo.embedding.state_dict()[name]), name


def test_one_training_is_for_one_number_of_ways(omniglot, tmp_path):
    with pytest.raises(ValueError, match=r"maml is trained for one number .*, got --ways \[3, 5\] --shots \[1\]"):
        omniglot(tmp_path / "results.json", "--learner", "maml", "--ways", 3, 5)


def run_of_lake(number, answers):
    """`answers`: of each new drawing, the class of its label; it is drawn as the class of its own number."""
    name = f"run{number:02}"
    drawn = [drawing(way // 7, way % 7) for way in range(20)]
    training = {f"{name}/training/class{way + 1:02}.png": image for way, image in enumerate(drawn)}
    test = {f"{name}/test/item{item + 1:02}.png": image for item, image in enumerate(drawn)}
    lines = [
        f"{name}/test/item{item + 1:02}.png {name}/training/class{way + 1:02}.png" for item, way in enumerate(answers)
    ]
    return training | test | {f"{name}/class_labels.txt": "\n".join(lines).encode()}


@pytest.fixture
def lake():
    """Runs lake.py on an archive of the official layout."""

    def run(runs, *words):
        args = of_lake.options().parse_args([*map(str, ("--runs", runs, *words))])
        torch.manual_seed(args.seed)
        of_lake.main(args)

    return run


def test_lake_counts_the_wrong_answers_of_each_run(omniglot, lake, tmp_path, capsys):
    omniglot(tmp_path / "x.json", "--learner", "protonet", "--save", tmp_path / "protonet.pt")
    right, five_wrong = list(range(20)), [1, 2, 3, 4, 0, *range(5, 20)]
    members = run_of_lake(1, right) | run_of_lake(2, five_wrong)
    for folder in ("", "all_runs/"):  # at the archive's root, or in a folder
        path = write(tmp_path, "all_runs", {folder + name: data for name, data in members.items()})
        lake(path, "--trained", tmp_path / "protonet.pt", "--results", tmp_path / "lake.json")
        text = capsys.readouterr().out
        assert re.findall(r"^(run\d+) +(\d+) %$", text, re.M) == [("run01", "0"), ("run02", "25")]
        assert "protonet: 12.5 ± " in text and "% wrong in 2 runs" in text
    (row,) = records.load(tmp_path / "lake.json")
    assert row["error"][0] == 12.5 and row["runs"] == 2


def test_lake_trains_a_learner_where_none_is_given(omniglot, lake, tmp_path, capsys):
    path = write(tmp_path, "all_runs", run_of_lake(1, range(20)) | run_of_lake(2, range(20)))
    budget = ["--hidden", 4, "--tasks", 1, "--steps", 1]
    lake(path, "--root", omniglot.root, "--learner", "maml", *budget)
    assert "maml: " in capsys.readouterr().out


def test_the_table_of_lakes_runs_is_made_once(omniglot, lake, tmp_path, capsys, monkeypatch):
    path, out = (
        write(tmp_path, "all_runs", run_of_lake(1, range(20)) | run_of_lake(2, [1, 0, *range(2, 20)])),
        tmp_path / "lake.json",
    )
    words = ["--root", omniglot.root, "--table", "--sets", "both", "--only", "protonet", lake_table.BEST, "--hidden", 4]
    words += ["--budget", 0.02, "--candidates", 2, "--results", out, "--work", tmp_path / "work"]
    tried = [
        practice.Practice(4, **practice.COSINE, jitter=1.0, within=0.9),
        practice.Practice(5, thickness=0.5, lr=1e-3),
    ]
    monkeypatch.setattr(practice, "CANDIDATES", tried)
    lake(path, *words)
    rows, log = (records.load(tmp_path / name) for name in ("lake.json", "lake_search.json"))
    last = records.of(log, budget=round(0.02 * lake_table.RUNGS[-1][0], 4))
    best = min((error[0], row["practice"], int(views)) for row in last for views, error in row["error"].items())
    assert [row["learner"] for row in rows] == ["protonet", lake_table.BEST] and [len(log), len(last)] == [4, 2]
    assert (list(rows[1]["practice"].values()), rows[1]["views"]) == best[1:] and rows[0]["mistaken"] is None
    for row in rows:
        assert row["runs"] == len(row["of_run"]) == 2 and row["error"][0] == sum(row["of_run"]) / 2
    wrong = sum(row / 5 for row in rows[1]["of_run"])
    assert len(rows[1]["mistaken"]) == wrong or wrong > lake_table.SHOWN
    monkeypatch.setattr(lake_table.Runs, "run", None)
    lake(path, *words)
    assert "protonet" in capsys.readouterr().out and records.load(out) == rows


def test_drawings_by_other_hands():
    images = runs.pixels(runs.bits(torch.rand(1, 28, 28)))[None, None].float().expand(6, -1, -1, -1)
    assert runs.pixels(runs.bits(images[0])).equal(images[0, 0].long())
    for change in (strokes.jittered, strokes.redrawn):
        torch.manual_seed(0)
        found = change(images, 1.0)
        assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1 and not found[0].equal(found[1])
        assert change(images, 0.0) is images
        small = (change(images, 1e-3) - images).abs().mean() / (found - images).abs().mean()
        assert 0 < small < 0.05
    encoder = strokes.Views(torch.nn.Flatten(), 3, 1.0)
    state = torch.get_rng_state()
    assert encoder(images).equal(encoder(images)) and torch.get_rng_state().equal(state)
    assert strokes.Views(torch.nn.Flatten(), 1, 1.0)(images).equal(images.flatten(1))


def test_what_is_wrong_with_the_runs_is_said(omniglot, lake, tmp_path):
    omniglot(tmp_path / "x.json", "--learner", "maml", "--ways", 5, "--save", tmp_path / "maml.pt")
    run = run_of_lake(1, range(20))
    missing = {name: data for name, data in run.items() if "item07" not in name}
    for members, said in (
        ({"readme": b""}, "--runs must hold runNN/class_labels.txt, got none"),
        (run_of_lake(1, [0] * 20), "--runs must pair 20 drawings with 20 classes"),
        (missing, "--runs must hold every drawing of run01/class_labels.txt, got none: .*item07"),
        (run, "--trained must have 20 outputs, got a maml of 5"),
    ):
        with pytest.raises(ValueError, match=said):
            lake(write(tmp_path, "all_runs", members), "--trained", tmp_path / "maml.pt")
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="--runs must be a sound zip file"):
        lake(tmp_path / "broken.zip", "--trained", tmp_path / "maml.pt")


def test_sinusoids_get_a_row(tmp_path):
    out = tmp_path / "results.json"
    words = ["--steps", "3", "--tasks", "4", "--eval-tasks", "20", "--results", str(out)]
    for learner in ("maml", "meta-sgd"):
        sinusoid.main(sinusoid.options().parse_args([*words, "--learner", learner]))
    rows = records.load(out)
    assert [row["learner"] for row in rows] == ["maml", "meta-sgd"]
    assert all(list(row["mse"]) == ["0", "1", "5", "10"] for row in rows)


def test_the_pages_are_those_of_the_results():
    for page, text in reproductions.pages().items():
        assert page.read_text() == text, f"{page.name}: make reproductions"


def test_learners_on_equal_terms_are_the_means_of_their_seeds():
    cell = {
        "learner": "maml",
        "ways": 5,
        "shots": 1,
        "budget": 60.0,
        "accuracy": [90.0, 0.6],
        "steps": 10,
        "recipe": {"tasks": 8},
    }
    rows = [
        cell | {"seed": 0},
        cell | {"seed": 1, "accuracy": [80.0, 0.8], "steps": 20},
        cell | {"seed": 0, "ways": 20, "accuracy": None},
        cell | {"seed": 0, "learner": "anil", "budget": 6.0},
    ]
    assert reached.on_equal_terms(rows)[2:] == [
        "| ANIL | 90.0 ± 0.6 |  |  |  | 1 | 80 | 6 s |",
        "| MAML | 85.0 ± 0.5 | diverged |  |  | 2 | 120, 80 | 60 s |", "",
    ]  # fmt: skip
    assert reached.by_learner(rows)[2:] == [
        "| MAML | 85.0 ± 0.5 | diverged | 60 s | `python examples/omniglot.py --table --only maml` |", "",
    ]  # fmt: skip
    assert reached.on_equal_terms([]) == ["Nobody has run it yet.", ""]
    (found,) = reproductions.panels(rows).values()
    assert found == [("MAML", 85.0, 0.5, 98.7)]


def test_lakes_table_has_a_line_for_a_learner_and_a_column_for_a_set():
    row = {"learner": "maml", "trained": "both", "budget": 60.0, "error": [8.0, 2.9]}
    rows = [row, row | {"trained": "small1", "error": None}, row | {"learner": "protonet", "budget": 6.0}]
    rows.append(row | {"learner": lake_table.BEST, "trained": "small2", "error": [3.3, 1.0]})
    assert reached.of_lake(rows)[-3:] == [
        "| MAML | diverged |  | 8.0 ± 2.9 | 60 s |", "| Best practice |  | 3.3 ± 1.0 |  | 60 s |", "",
    ]  # fmt: skip
    assert not any("fastmeta" in line for line in reached.of_lake([]))


def test_a_practice_is_told_by_what_it_changes():
    tried = {
        "trained": "small1",
        "budget": 30.0,
        "practice": [*practice.Practice()],
        "error": {"1": [9.0, 1.0], "10": [8.0, 1.0]},
    }
    other = tried | {"practice": [*practice.Practice(64, jitter=0.5)], "trained": "both", "error": {"1": [7.0, 1.0]}}
    longer = tried | {"budget": 80.0, "error": {"1": [6.0, 1.0]}}
    assert reached.of_practices([tried, other, longer]) == [
        "| practice | small1, 30 s | small1, 80 s | small2, 30 s | small2, 80 s | both, 30 s | both, 80 s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| the default | 8.0 | 6.0 |  |  |  |  |", "| hidden 64, jitter 0.5 |  |  |  |  | 7.0 |  |", "",
    ]  # fmt: skip


def texts(path):
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_the_pictures_are_those_of_the_results(tmp_path):
    """By their texts, numbers among them: the lines depend on matplotlib's version."""
    reproductions.draw(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    others = {inner_loops_page.PICTURE.name}
    assert drawn == sorted({path.name for path in (ROOT / "docs/pictures").iterdir()} - others)
    for name in drawn:
        assert len(texts(tmp_path / name)) > 10
        assert texts(tmp_path / name) == texts(ROOT / "docs/pictures" / name), f"{name}: make reproductions"
