"""The command `python -m benchmarks.ahead`, with programs of the CPU in place of compiled ones."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import ahead
from benchmarks.ahead_table import tables
from vidformers.errors import ConfigError
from vidformers.training.ahead import Program

pytestmark = pytest.mark.quick

CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
FLAGS = ["vit_b16", "--topology=v5e:1x1", "--largest=false", "--config.model.depth=1"]


def program(cycles=1_500_000, gib=1) -> Program:
    """Returns a program of one product and one kernel. It takes `cycles` and `gib` GiB of memory."""
    text = (
        "ENTRY %main (a: f32[8]) -> f32[8] {\n"
        "  %a = f32[8192,8192]{1,0} parameter(0)\n"
        f"  %c = f32[8192,8192]{{1,0}} convolution(%a, %a), {CYCLES % cycles}\n"
        '  %k = f32[8,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"\n}\n'
    )
    mesh = {"data": 1, "fsdp": 1, "context": 1}
    return Program(gib * 2**30, 2**20, mesh, kernel_flops=197 * 10**9, seconds=1.0, text=text)


@pytest.fixture
def compiled(monkeypatch):
    """Replaces the compiler. Returns the list of requests that it gets."""
    requests = []
    monkeypatch.setattr(ahead, "compile_ahead", lambda request: requests.append(request) or program())
    monkeypatch.setattr(ahead, "commit", lambda: "abc1234")
    return requests


def run(capsys, *flags: str) -> tuple[int, str, str]:
    """Returns the status of the command, and what it wrote to standard output and standard error."""
    status = ahead.main(list(flags))
    written = capsys.readouterr()
    return status, written.out, written.err


def test_the_last_line_is_a_json_object_with_the_account(compiled, capsys):
    status, out, _ = run(capsys, *FLAGS, "--clips=3")
    line = json.loads(out.splitlines()[-1])
    assert status == 0
    assert {"config", "topology", "mesh", "clips", "bytes", "largest_clips", "exchanges"} <= set(line)
    assert (line["config"], line["topology"], line["clips"], line["bytes"]) == ("vit_b16", "v5e:1x1", 3, 2**30)
    assert line["estimated_seconds"] == 1e-3
    assert line["share"] == line["products_seconds"] / 1e-3
    assert [each["kind"] for each in line["unestimated"]] == ["kernel"]
    assert line["unestimated_guess_seconds"] == pytest.approx(2e-3)  # 1 ms of products at the peak
    assert {"versions", "commit", "date", "compile_seconds"} <= set(line)
    assert compiled[0].config["model"]["depth"] == 1 and compiled[0].config["train"]["accumulate"] == 1


def test_products_are_those_of_the_summary_three_times_in_training(compiled, capsys):
    seconds = {}
    for step in ("train", "eval"):
        line = json.loads(run(capsys, *FLAGS, "--clips=2", f"--step={step}")[1].splitlines()[-1])
        seconds[step] = line["products_seconds"]
    # One layer of ViT-B on 2 clips x 8 frames x 197 tokens: products with 12 width^2 parameters, and of the attention.
    tokens, width = 2 * 8 * 197, 768
    layer = tokens * 12 * width**2 + 2 * tokens * 197 * width
    embedding = 2 * 8 * 196 * width**2
    assert seconds["eval"] == pytest.approx(2 * (layer + embedding) / 197e12, rel=0.001)
    assert seconds["train"] == pytest.approx(3 * seconds["eval"])


def test_gpus_have_no_estimate(compiled, capsys):
    line = json.loads(run(capsys, "vit_b16", "--topology=h100:1", "--largest=false")[1].splitlines()[-1])
    assert line["estimated_seconds"] is None and line["share"] is None and line["unestimated"] is None
    assert line["products_seconds"] > 0


def test_until_buffers_has_no_estimate(compiled, capsys):
    line = json.loads(run(capsys, *FLAGS, "--until=buffers")[1].splitlines()[-1])
    assert compiled[0].until_buffers and line["estimated_seconds"] is None


def test_lines_of_the_same_commit_are_not_compiled_again(compiled, capsys, tmp_path, monkeypatch):
    out = f"--out={tmp_path}/lines.jsonl"
    run(capsys, *FLAGS, out)
    run(capsys, "vit_b16,mevit_b16", *FLAGS[1:3], out)  # another depth, another config
    run(capsys, *FLAGS, out)
    run(capsys, *FLAGS, "--clips=5", out)
    assert [len(request.config["model"]) > 0 and request.clips for request in compiled] == [4, 4, 4, 5]
    for commit in ("abc1234-dirty", None):
        monkeypatch.setattr(ahead, "commit", lambda commit=commit: commit)
        run(capsys, *FLAGS, out)
        run(capsys, *FLAGS, out)
    assert len(compiled) == 8, "lines of a changed tree say nothing about the next change"


def test_a_config_that_cannot_be_compiled_does_not_stop_the_others(compiled, capsys, monkeypatch, tmp_path):
    def compile_ahead(request):
        if request.config["model"]["name"] == "mevit":
            raise ConfigError("It does not fit.")
        return program()

    monkeypatch.setattr(ahead, "compile_ahead", compile_ahead)
    status, _, err = run(capsys, "mevit_b16,vit_b16", *FLAGS[1:3], f"--out={tmp_path}/lines.jsonl")
    assert (status, err) == (2, "benchmarks.ahead: mevit_b16: It does not fit.\n")
    assert [json.loads(line)["config"] for line in (tmp_path / "lines.jsonl").open()] == ["vit_b16"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["vit", "--topology=v5e:1x1"], "The config vit is unknown. Use all, or some of vit_b16"),
        (["vit_b16", "--topology=v9:1"], "--topology=v9:1 is unknown"),
        (["vit_b16", "--topology=v5e:1x1", "--config.model.depht=2"], "did you mean --config.model.depth?"),
        (["vit_b16", "--topology=v5e:1x1", "--clips=0"], "--clips=0 must be at least 1"),
        (["all", "--topology=v5e:1x1", "--text=program.txt"], "--text saves the program of one config"),
        (["--check=absent.jsonl"], "--check=absent.jsonl does not exist"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(flags, words, capsys):
    status, _, err = run(capsys, *flags)
    assert status == 2 and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "flags", [["vit_b16"], ["--topology=v5e:1x1"], ["vit_b16", "--step=fly"], ["--fly=1"], ["--check=a", "--clips=8"]]
)
def test_missing_and_unknown_flags_end_with_the_usage(flags, capsys):
    with pytest.raises(SystemExit):
        ahead.main(flags)
    assert "usage: benchmarks.ahead" in capsys.readouterr().err


@pytest.fixture
def recorded(compiled, capsys, tmp_path, monkeypatch):
    """A file with the lines of the six configs."""
    monkeypatch.setattr(ahead, "products_seconds", lambda request, mesh: 1e-4)  # counting them takes seconds
    path = tmp_path / "lines.jsonl"
    run(capsys, ",".join(ahead.CHECKED), *FLAGS[1:3], f"--out={path}")
    return path


@pytest.mark.parametrize(
    "cycles, gib, complaints",
    [(1_500_000, 1, 0), (1_540_000, 1, 0), (1_600_000, 1, 6), (1_500_000, 1.06, 6), (1_600_000, 1.06, 12)],
)
def test_the_check_names_what_is_worse_by_more_than_five_percent(
    recorded, cycles, gib, complaints, capsys, monkeypatch
):
    monkeypatch.setattr(ahead, "compile_ahead", lambda request: program(cycles, gib))
    status, out, _ = run(capsys, f"--check={recorded}")
    assert status == (1 if complaints else 0)
    assert out.count("instead of") == complaints
    assert complaints or "Not worse by more than 5%: mevit_b16, vit_b16," in out


def test_the_check_needs_a_line_of_each_config(recorded, capsys):
    lines = recorded.read_text().splitlines()
    recorded.write_text("\n".join(lines[1:]))
    status, _, err = run(capsys, f"--check={recorded}")
    assert status == 2 and f"has no training step with a share of {ahead.CHECKED[0]}. Record it with:" in err
    status, out, _ = run(capsys, "vit_b16", f"--check={recorded}")
    assert status == 0 and "Not worse by more than 5%: vit_b16." in out


def test_the_check_says_that_a_kernel_without_an_estimate_takes_longer(recorded, capsys, monkeypatch):
    slower = program(1_400_000)._replace(kernel_flops=2 * 197 * 10**9)
    monkeypatch.setattr(ahead, "compile_ahead", lambda request: slower)
    status, out, _ = run(capsys, "vit_b16", f"--check={recorded}")
    assert status == 1 and "take 0.004 s by the guess instead of 0.002 s" in out


def test_the_check_names_other_versions_of_the_compiler(recorded, capsys, monkeypatch):
    now = ahead.versions() | {"libtpu": "99.0"}
    monkeypatch.setattr(ahead, "versions", lambda: now)
    status, out, _ = run(capsys, "vit_b16", f"--check={recorded}")
    assert status == 0 and "vit_b16 was recorded with libtpu none (now 99.0)." in out


def test_the_check_goes_on_where_a_config_cannot_be_compiled(recorded, capsys, monkeypatch):
    def compile_ahead(request):
        if request.config["model"]["name"] == "mevit":
            raise ConfigError("It does not fit.")
        return program(1_600_000)

    monkeypatch.setattr(ahead, "compile_ahead", compile_ahead)
    status, out, _ = run(capsys, "mevit_b16,vit_b16", f"--check={recorded}")
    assert status == 1 and "mevit_b16: It does not fit." in out and out.count("instead of") == 1


def test_a_file_that_is_no_json_is_refused(recorded, capsys):
    recorded.write_text("half a li")
    status, _, err = run(capsys, f"--check={recorded}")
    assert status == 2 and f"Line 1 of {recorded} is not JSON" in err


@pytest.mark.parametrize("flag", ["--out", "--text"])
@pytest.mark.parametrize("path, words", [("gs://b/x", "is an address"), ("{}/none/x", "does not exist")])
def test_a_file_that_cannot_be_written_is_known_before_anything_is_compiled(
    flag, path, words, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(ahead, "compile_ahead", lambda request: pytest.fail("It was compiled."))
    status, _, err = run(capsys, "vit_b16", "--topology=v5e:1x1", f"{flag}={path.format(tmp_path)}")
    assert status == 2 and f"{flag}=" in err and words in err


def test_the_tables_of_the_docs_are_those_of_the_recorded_lines():
    page = Path("docs/estimates.md").read_text(encoding="utf-8")
    files = re.findall(r"`(benchmarks/results/\S+\.jsonl)`", page)
    assert len(files) == 2
    for table in tables(files, with_meshes=False).split("\n\n"):
        assert table in page, f"Print the tables of docs/estimates.md again: {table.splitlines()[0]}"
    assert "| v5e:16x16 | `swin_t` | data=256 |" in tables(files, with_meshes=True)
