"""The sweeps' curves and the page that holds them, on rows that are written here and on the page's own."""

import json

import bench_scaling

from pages import scaling_page


def row(value, ours, floor, threads=1, sweep="sweep", **others):
    ways = {"ext": {"seconds": ours, "quartiles": [ours] * 2}}
    ways |= {name: {"seconds": seconds, "quartiles": [seconds] * 2} for name, seconds in others.items()}
    return {
        "op": "scaling", "mode": sweep, "workload": f"{sweep}: T = {value}", "threads": threads, "sizes": {"T": value},
        "floor": floor, "ours": ["ext"], "contenders": ways, "not timed": {} if others else {"loop": "took 3 s at T = 4"},
    }  # fmt: skip


ROWS = [
    row(16, 8e-3, 4e-3),
    row(1, 1e-3, 1e-5, loop=4e-3),
    row(4, 2e-3, 1e-3, loop=6e-3),
    row(16, 5e-3, 2e-3, threads=2),
]


def test_cells_of_a_sweep_are_by_size():
    """16 times the tasks of the size before take 4 times as long: growth 1; 4 times twice: growth 1 / 2."""
    assert list(scaling_page.cells(ROWS)) == [
        ("sweep", "T = 1", "1 ms", "", "-", "1%", "4.0x (loop)"),
        ("", "T = 4", "2 ms", "0.50", "-", "50%", "3.0x (loop)"),
        ("", "T = 16", "8 ms", "1.00", "5 ms", "50%", "loop took 3 s at T = 4"),
    ]


def test_pictures_of_the_same_rows_are_the_same(tmp_path):
    rows = [*ROWS, row(1, 1e-3, 1e-5, threads=2, loop=1e-3)]
    rows[1]["contenders"]["loop"]["memory"] = 2**20
    for name, draw in (("speed", scaling_page.speed_curves), ("memory", scaling_page.memory_curves)):
        once, again = (tmp_path / f"{name}{i}.svg" for i in range(2))
        for path in (once, again):
            scaling_page.save(draw(rows), path)
        assert once.read_bytes() == again.read_bytes() and b"sweep" in once.read_bytes()
    assert b"fastest eager alternative" in (tmp_path / "speed0.svg").read_bytes()


def test_the_page_is_what_its_file_gives():
    text = scaling_page.PAGE.read_text()
    source = scaling_page.ROOT / scaling_page.BEGIN.search(text)[1]
    assert scaling_page.page(text, json.loads(source.read_text())) == text


def test_a_way_that_is_too_slow_is_left_out_of_larger_sizes_and_the_row_says_so(monkeypatch):
    monkeypatch.setattr(bench_scaling, "too_slow", {})
    raced, rows = [], []

    def race(name, contenders, **_):
        raced.append(set(contenders))
        rows.append(row(4, 1.0, 1e-3, **{way: 2 * bench_scaling.SLOW for way in contenders if way != "ext"}))
        rows[-1]["not timed"] = {}
        return rows[-1]

    ways = {"ext": None, "loop": None}
    for value in (4, 4, 16):
        bench_scaling.point(race, "s", "T", value, ways, None, "loop")
    assert raced == [{"ext", "loop"}, {"ext", "loop"}, {"ext"}]
    assert [r["not timed"] for r in rows] == [{}, {}, {"loop": "took 0.6 s at T = 4"}]
