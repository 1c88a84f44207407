"""The tables of the papers: every row builds, printed counts agree, and the command goes on where it was killed."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace

import pytest
from command import CACHE, ROOT, one_sentence
from flax import nnx

from benchmarks.tables import counts, page
from benchmarks.tables import run as run_module
from benchmarks.tables.__main__ import main, parse
from benchmarks.tables.registry import PAPERS, TABLES, find
from benchmarks.tables.report import results_table
from benchmarks.tables.rows import Row, Table
from benchmarks.tables.run import make_jobs
from configs.loading import FlagError, read_flags
from vidformers import build

quick = pytest.mark.quick
GOLDEN = ROOT / "tests" / "goldens" / "run" / "data"
ROWS = [(table, number) for table in TABLES.values() for number in table.numbers()]
IDS = [f"{table.name}-{number}" for table, number in ROWS]
NOT_HERE = ("a convolutional network", "MViT", "VidTr", "a searched network", "ViViT's factorised encoder")


def row_of(table: Table, number: int) -> Row:
    return table.rows[number - 1]


def model_of(name: str, number: int):
    return counts.config_of(row_of(TABLES[name], number)).model


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_builds_at_full_size_and_its_counts_are_those_recorded(paper):
    recorded = {name: count for name, count in counts.recorded().items() if name.startswith(f"{paper}/")}
    made = {
        f"{table.name}/{number}": counts.counts_of(row_of(table, number))
        for table in PAPERS[paper][1]
        for number in table.numbers()
    }
    assert made == recorded


def test_a_wrong_override_is_seen():
    """The row 9+3 of MEViT's Table 2 with the default of its third field, and STAT's windows 3 and 5 exchanged."""
    for table, number, changed in (("mevit/2", 1, "model.class_blocks=1"), ("stat/1", 2, "model.window=5")):
        row, recorded = row_of(TABLES[table], number), counts.recorded()[f"{table}/{number}"]
        field = changed.partition("=")[0]
        assert any(override.startswith(field) and override != changed for override in row.overrides)
        wrong = replace(row, overrides=tuple(o if not o.startswith(field) else changed for o in row.overrides))
        assert counts.counts_of(wrong) != recorded
        assert not row.cost or not counts.cost_agrees(TABLES[table], row, counts.counts_of(wrong))


@quick
@pytest.mark.parametrize("table, number", ROWS, ids=IDS)
def test_printed_counts_agree_or_the_row_says_why_not(table, number):
    row, made = row_of(table, number), counts.recorded()
    states = list(page.states(table, number, made))
    assert bool(states) == bool(row.cost or row.params)
    assert all(states) == (not row.differs)


def test_costs_that_differ_are_those_of_the_models_that_the_remarks_name():
    for table, number in ROWS:
        row = row_of(table, number)
        if row.cost_with:
            assert counts.cost_agrees(table, row, counts.counts_of(row, with_cost=True)), row.label


@quick
def test_the_differences_of_costs_in_stats_tables_are_those_of_the_model():
    """Independent of norms and of the stem: short-term attention costs 0.8 G, long-term 0.1 G, two frames 1.5 G."""
    recorded = counts.recorded()
    for name, pairs in (("stat/1", ((1, 2), (1, 3), (2, 4), (3, 4))), ("stat/2", ((1, 2), (2, 3), (3, 4)))):
        for one, two in pairs:
            printed = float(row_of(TABLES[name], two).cost) - float(row_of(TABLES[name], one).cost)
            ours = (recorded[f"{name}/{two}"].macs - recorded[f"{name}/{one}"].macs) / 1e9
            assert ours == pytest.approx(printed, abs=0.1), (name, one, two)


@quick
def test_every_row_is_complete_or_says_why_it_has_no_command():
    for table in TABLES.values():
        fields = defaultdict(set)
        for number, row in enumerate(table.rows, 1):
            if row.unreachable:
                assert row.unreachable.startswith(NOT_HERE) and not row.config and not row.overrides, row
                continue
            assert row.config and re.fullmatch(r"\d+x\d+", table.views_of(row)), row
            fields[row.config].add(tuple(sorted(override.partition("=")[0] for override in row.overrides)))
            assert all(re.fullmatch(r"|\d+(\.\d+)?", figure) for figure in (row.top1, row.top5, row.cost, row.params))
            assert table.name.startswith("vtn/") or row.top1, (table.name, number)
        # All rows of a config set the same fields, so that none depends on the defaults of the config.
        assert all(len(sets) == 1 for sets in fields.values()), (table.name, fields)


@quick
def test_labels_and_overrides_mean_the_same():
    """Read from the labels, which are the paper's words, and not from the overrides."""
    for number, row in enumerate(TABLES["mevit/1"].rows, 1):
        model = model_of("mevit/1", number)
        assert f"M = {model.block_size}" == row.label and model.depth == model.motion_blocks == 12
    for number, row in enumerate(TABLES["mevit/2"].rows, 1):
        blocks, class_blocks = map(int, re.match(r"(\d+)\+(\d+)", row.label).groups())
        model = model_of("mevit/2", number)
        assert (model.depth, model.motion_blocks, model.class_blocks) == (blocks, blocks, class_blocks)
    for number, row in enumerate(TABLES["mevit/3"].rows, 1):
        model = model_of("mevit/3", number)
        assert (model.depth, model.class_blocks) == (12, 0) and row.label == f"L_t = {model.motion_blocks}"
    for name, unit, of in (("msca/1", "heads", 12), ("msca/4", "patches", 197)):
        for number, row in enumerate(TABLES[name].rows[1:], 2):
            total, half, percent = re.search(rf"(\d+) {unit} .* = (\d+)\), shift ([\d.]+) %", row.label).groups()
            model = model_of(name, number)
            assert (model.direction, model.moved, model.before, model.after) == (unit, "KV", int(half), int(half))
            assert int(total) == 2 * int(half) and f"{100 * int(total) / of:.1f}" == percent
    for number, row in enumerate(TABLES["msca/3"].rows[1:], 2):
        assert row.label.startswith(f"MSCA-KV, {model_of('msca/3', number).shifted_blocks} MSCA")
    for name, prefix in (("msca/2", "MSCA-"), ("msca/5", "MSCA-p")):
        for number, row in enumerate(TABLES[name].rows[2:], 3):
            assert row.label == prefix + model_of(name, number).moved
    for number, row in enumerate(TABLES["stat/2"].rows, 1):
        assert row.label == f"SA_{model_of('stat/2', number).window}" and model_of("stat/2", number).frames == 32
    for number, row in enumerate(TABLES["stat/4"].rows, 1):
        assert row.label == f"l_ta = {model_of('stat/4', number).aggregation_layers}"
    kinds = [(m.window > 1, m.long_key != "none") for m in (model_of("stat/1", n) for n in (1, 2, 3, 4))]
    assert kinds == [("SA" in row.label, "LA" in row.label) for row in TABLES["stat/1"].rows]


@quick
def test_the_pages_are_those_of_the_data():
    for path, text in page.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python -m benchmarks.tables --write"
    assert len(list(page.listing())) == sum(len(table.rows) for table in TABLES.values())


@quick
def test_the_small_forms_build_with_twelve_heads_where_the_table_counts_heads():
    with_small = {name: table.numbers(small=True) for name, table in TABLES.items() if table.small}
    assert {"mevit/3", "msca/3", "stat/4", "msca/2"} <= with_small.keys() and with_small["msca/2"][:2] == [1, 2]
    built = set()
    for name, numbers in with_small.items():
        for job in make_jobs(TABLES[name], numbers, [0], [], ROOT / "runs", small=True):
            config, _ = read_flags(job.arguments, {})
            assert config.data.source == "motion_clips" and config.model.frames == 8
            if name in ("msca/1", "msca/2"):
                assert config.model.heads == 12
            if (model := str(config.model)) not in built:
                built.add(model)
                assert nnx.eval_shape(lambda model=config.model: build(rngs=nnx.Rngs(0), **model.to_dict())).shape


STUB = """
import json, sys, time
from pathlib import Path
workdir = next(Path(a.partition("=")[2]) for a in sys.argv if a.startswith("--workdir="))
out, (size,) = workdir.parent, [int(a.partition("=")[2]) for a in sys.argv if "block_size" in a]
workdir.mkdir(exist_ok=True)
with open(out / "log", "a") as log:
    print(workdir.name, file=log)
hang = out / "hang"
if hang.exists() and hang.read_text() == workdir.name:
    hang.unlink()
    time.sleep(60)
config = json.loads((out / f"{workdir.name}.config").read_text())
(workdir / "run.json").write_text(json.dumps(dict(config=config, total_steps=7, devices="stub", commit="c")))
top1 = size / 100 + config["seed"] / 1000
rows = [{"step": step, "time": 1.7e9 + step, "val/top1@1x3": top1, "val/top5@1x3": 2 * top1} for step in (3, 7)]
(workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


def prepare(out, arguments):
    """Writes the configs of the runs of a command, which a program that trains nothing puts into their run.json."""
    command = parse(arguments)
    for job in make_jobs(command.table, command.rows, range(command.seeds), command.fields, command.out):
        config = read_flags(job.arguments, {})[0].to_dict()
        del config["data"]["resize"]  # as a version without this field stores it
        (out / f"{job.name}.config").write_text(json.dumps(config))


def test_a_command_that_was_killed_goes_on_and_runs_no_finished_row_twice(monkeypatch, tmp_path, capsys):
    arguments = ["mevit/1", "--rows=1,3,5", "--config.data.root=nowhere", f"--out={tmp_path}"]
    prepare(tmp_path, arguments)
    (tmp_path / "stub.py").write_text(STUB)
    script = (
        "import sys; from benchmarks.tables import run, __main__ as command; "
        f"run.PROGRAM = [sys.executable, {str(tmp_path / 'stub.py')!r}]; sys.exit(command.main(sys.argv[1:]))"
    )
    command, log = [sys.executable, "-c", script, *arguments], tmp_path / "log"
    for name, number in (("row3-seed0", signal.SIGKILL), ("row5-seed0", signal.SIGTERM)):
        (tmp_path / "hang").write_text(name)
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not log.exists() or not log.read_text().endswith(f"{name}\n"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate()  # waits for the run, too, which has the same stderr
        assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
        assert number == signal.SIGKILL or "The same command continues." in one_sentence(err)
        assert "top1" not in json.loads((tmp_path / f"{name}.json").read_text())
    assert "top1" in json.loads((tmp_path / "row1-seed0.json").read_text())
    assert "| 1 | M = 1 | 78.6 | 93.0 | 1x3 | 1.00 | 2.00 | 1x3 | 1 |" in (tmp_path / "table.md").read_text()
    monkeypatch.setattr("benchmarks.tables.run.PROGRAM", [sys.executable, str(tmp_path / "stub.py")])
    assert main(arguments) == 0
    assert [int(name[3]) for name in log.read_text().split()] == [1, 3, 3, 5, 5]
    out = capsys.readouterr().out
    assert "| 3 | M = 3 | 80.0 | 93.2 | 1x3 | 3.00 | 6.00 | 1x3 | 1 |" in out and "Flags" not in out
    assert "| 2 | M = 2 | 80.2 | 93.6 | 1x3 |  |  |  | 0 |" in (tmp_path / "table.md").read_text()


@quick
def test_changed_rows_and_flags_are_refused_and_seeds_are_averaged(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("benchmarks.tables.run.PROGRAM", [sys.executable, "-c", STUB])
    arguments = ["mevit/1", "--rows=2", "--seeds=2", f"--out={tmp_path}"]
    prepare(tmp_path, [*arguments, "--config.optim.lr=0.1"])
    assert main([*arguments, "--config.optim.lr=0.1"]) == 0
    assert "| 2 | M = 2 | 80.2 | 93.6 | 1x3 | 2.05 ± 0.07 (2.00 to 2.10) |" in capsys.readouterr().out
    assert "Flags of these runs: `--config.optim.lr=0.1`." in (tmp_path / "table.md").read_text()
    assert main([*arguments, "--config.optim.lr=0.2"]) == 2
    assert "--config.optim.lr was 0.1 and is 0.2. Give" in one_sentence(capsys.readouterr().err)
    assert main(arguments) == 2
    assert "--config.optim.lr was 0.1 and is not given." in one_sentence(capsys.readouterr().err)
    row = row_of(TABLES["mevit/1"], 2)
    changed = replace(row, overrides=(*row.overrides[:-1], "model.block_size=4"))
    table = replace(TABLES["mevit/1"], rows=(TABLES["mevit/1"].rows[0], changed))
    monkeypatch.setitem(TABLES, "mevit/1", table)
    assert main([*arguments, "--config.optim.lr=0.1"]) == 2
    assert "--config.model.block_size was 2 and is 4." in one_sentence(capsys.readouterr().err)
    assert len((tmp_path / "log").read_text().split()) == 2


@quick
def test_rows_and_seeds_of_other_commands_stand_in_the_table_and_damaged_results_are_reported(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr("benchmarks.tables.run.PROGRAM", [sys.executable, "-c", STUB])
    for rows, seeds in (("2", 2), ("3,1", 1)):
        arguments = ["mevit/1", f"--rows={rows}", f"--seeds={seeds}", f"--out={tmp_path}"]
        prepare(tmp_path, arguments)
        assert main(arguments) == 0
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    order = [(result["row"], result["seed"]) for result in map(json.loads, lines)]
    assert order == [(1, 0), (2, 0), (2, 1), (3, 0)]
    assert "| 2 | M = 2 | 80.2 | 93.6 | 1x3 | 2.05 ± 0.07 (2.00 to 2.10) |" in capsys.readouterr().out
    prepare(tmp_path, other := ["mevit/1", "--rows=4", "--config.optim.lr=0.1", f"--out={tmp_path}"])
    assert main(other) == 0 and len((tmp_path / "results.jsonl").read_text().splitlines()) == 1
    good = (tmp_path / "row3-seed0.json").read_text()
    for damage in ("", "[]", good[:-9], good.replace('"date"', '"day"'), good.replace('"top1": 0.03', '"top1": 3')):
        (tmp_path / "row3-seed0.json").write_text(damage)
        assert main(arguments) == 2
        assert "row3-seed0.json is damaged. Remove it to train row 3 again." in one_sentence(capsys.readouterr().err)


@quick
def test_recorded_results_stand_in_the_page(monkeypatch, tmp_path):
    result = dict(row=2, top1=0.5, top5=0.9, protocol="4x1", seconds=7200, date="2026-11-28", devices="1 x cpu")
    lines = [json.dumps(result | dict(seed=seed, commit="0123456789abcdef", machine="a CPU")) for seed in range(2)]
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    page.results_file(TABLES["stat/4"], small=True).write_text("\n".join(lines))
    text = page.pages()[ROOT / "docs" / "papers" / "stat.md"]
    assert "| 2 | l_ta = 1 | 78.6 | 93.8 | 5x1 | 50.00 ± 0.00 (50.00 to 50.00) |" in text
    assert "2 runs on 1 x cpu on a CPU, 2026-11-28, 4.0 hours in all, commit 0123456789ab." in text


@quick
def test_a_row_that_stands_in_two_tables_is_run_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("benchmarks.tables.run.PROGRAM", [sys.executable, "-c", STUB])
    for name, rows in (("mevit/1", "1,2"), ("mevit/3", "4,5")):
        out = tmp_path / name.replace("/", "-")
        out.mkdir()
        arguments = [name, f"--rows={rows}", f"--out={out}"]
        prepare(out, arguments)
        assert main(arguments) == 0
    assert (out / "log").read_text().split() == ["row4-seed0"]
    assert "| 5 | L_t = 12 | 80.2 |  | 1x3 | 2.00 | 4.00 | 1x3 | 1 |" in capsys.readouterr().out
    assert "Some of these are runs of mevit-1" in (out / "table.md").read_text()


@quick
def test_a_run_that_another_process_trains_is_waited_for(tmp_path):
    """A run has its lock in the workdir. Its command holds another one, which a second command sees before the first
    has started the run; the result is then there."""
    (job,) = make_jobs(TABLES["mevit/1"], [1], [0], [], tmp_path)
    job.workdir.mkdir()
    result = dict.fromkeys(run_module.RESULT, 0) | dict(arguments=list(job.arguments))
    holder = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(flush=True); time.sleep(0.5); "
        "open(sys.argv[2], 'w').write(sys.argv[3])"
    )
    lines = []
    for lock, file in ((job.workdir / ".lock", tmp_path / "other"), (job.folder / f"{job.name}.lock", job.file)):
        command = [sys.executable, "-c", holder, lock, file, json.dumps(result)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            if file == job.file:
                assert run_module.run(job, lines.append) == result
            else:
                with run_module._locked(job, lines.append):
                    assert file.exists()
            assert process.wait(5) == 0
    assert len(lines) == 2 and all("waits for the process that trains" in line for line in lines)


@quick
def test_runs_of_printed_commands_are_collected(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("benchmarks.tables.run.PROGRAM", [sys.executable, "-c", STUB])
    (tmp_path / "stub.py").write_text(STUB)
    arguments = ["mevit/1", "--rows=1,4", "--config.data.root=a folder", f"--out={tmp_path}"]
    prepare(tmp_path, arguments)
    assert main([*arguments, "--print"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and not (tmp_path / "log").exists()
    assert lines[1].startswith("python main.py --config=configs/mevit_b16.py --config.model.depth=12 ")
    assert "'--config.data.root=a folder'" in lines[1] and lines[1].endswith(f"--workdir={tmp_path}/row4-seed0")
    script = lines[1].replace("python main.py", f"{sys.executable} {tmp_path}/stub.py")
    subprocess.run(script, shell=True, cwd=ROOT, check=True)
    assert main(arguments) == 0
    assert (tmp_path / "log").read_text().split() == ["row4-seed0", "row1-seed0"]


@quick
@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Give the name of one table"),
        (["mevit/9"], "'mevit/9' is not a table. Choose one of mevit/1, .*, mevit/6."),
        (["mvit/1"], "Choose one of mevit/1, .*, msca/5."),
        (["mevit/1", "--rows=6"], "'6' is not a row of mevit/1, which has the rows 1 to 5."),
        (["mevit/4", "--rows=1"], "row 1 of mevit/4 .blVNet. has no run: a convolutional network."),
        (["msca/2", "--small", "--rows=x"], "'x' is not a row"),
        (["mevit/4", "--small"], "mevit/4 has no small form. These have: mevit/1, mevit/3"),
        (["mevit/1", "--seeds=0"], "--seeds=0 must be an integer, at least 1."),
        (["mevit/1", "--seeds=²"], "--seeds=² must be an integer, at least 1."),
        (["mevit/1", "--rows=²"], "'²' is not a row of mevit/1"),
        (["mevit/1", "--seed=3"], "--seed=3 is not a flag"),
        (["mevit/1", "--workdir=x"], "--workdir cannot be given: the rows of mevit/1 set it."),
        (["mevit/1", "--config.model.depth=3"], "--config.model.depth=3 cannot be given: row 1 of mevit/1 sets this"),
        (["mevit/1", "--config.seed=3"], "--config.seed=3 cannot be given"),
        (["mevit/1", "--config.model.widht=3"], "model.widht is not a field of this config; did you mean"),
        (["mevit/1", "--config.optim.lr=x"], "--config.optim.lr=x is not of type float."),
    ],
)
def test_mistakes_are_reported_in_one_sentence(arguments, message, capsys):
    assert main([*arguments, "--print"]) == 2
    assert re.search(message, one_sentence(capsys.readouterr().err))


@quick
def test_tables_are_found_by_name_and_rows_by_number():
    assert find("stat/4").name == "stat/4"
    with pytest.raises(FlagError, match="is not a table"):
        find("")
    assert parse(["msca/3", "--rows=3,1,3"]).rows == [3, 1]
    assert parse(["mevit/4"]).rows == [9, 10, 11, 12] and parse(["msca/2", "--small"]).out.name == "msca-2-small"
    lines = results_table(TABLES["mevit/1"], [], small=True)
    assert "no evidence for or against Table 1" in "\n".join(lines)


def test_a_small_row_trains(tmp_path):
    """Two steps of the row ViT of MSCA's Table 2."""
    fields = {
        "data.source": "csv", "data.root": GOLDEN, "data.frames": 4, "data.size": 16, "data.short_side": "18,20",
        "data.test_short_side": 18, "data.workers": 0, "model.unroll": 1, "train.total_steps": 2,
        "train.batch_size": 4, "train.eval_every_steps": "none", "optim.warmup_steps": 1, "eval.batch_size": 4,
        "checkpoint.every_steps": 10,
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.tables", "msca/2", "--small", "--rows=2", f"--out={tmp_path}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    env = {"XDG_CACHE_HOME": str(CACHE), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "row2-seed0.json").read_text())
    assert result["steps"] == 2 and result["protocol"] == "4x1" and 0 <= result["top1"] <= result["top5"] <= 1
    assert f"| 2 | ViT | 75.65 | 92.19 | 10x3 | {100 * result['top1']:.2f} |" in done.stdout
