"""`python main.py` alone and --help show a page with an example of each mode, and --help=MODE explains its flags."""

import re
import shlex

import pytest
from command import ROOT, one_sentence

import main
from configs import help

pytestmark = pytest.mark.quick


def shown(capsys, *arguments):
    assert main.main(["main.py", *arguments]) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def test_the_page_is_short_and_has_an_example_of_each_mode(capsys):
    page = shown(capsys)
    assert page == shown(capsys, "--help") == shown(capsys, "-h") == shown(capsys, "--workdir=x", "-h")
    assert page.count("\n") <= 30 and max(map(len, page.splitlines())) <= 120
    examples = [
        shlex.split(line)[2:] for line in page.splitlines() if line.startswith(" ") and "python main.py" in line
    ]
    flags = [dict(re.fullmatch("--([^=]+)=(.+)", word).groups() for word in example) for example in examples]
    assert {example.get("mode", "train") for example in flags} == set(main.MODES) == set(help.MODES)
    for example in flags:
        mode = main.MODES[example.pop("mode", "train")]
        assert set(mode.required_flags) <= example.keys()
        assert {name for name in example if not name.startswith("config.")} <= {"config", "workdir", *mode.flags}


@pytest.mark.parametrize("mode", main.MODES)
def test_the_page_of_a_mode_explains_its_flags(mode, capsys):
    pages = (shown(capsys, f"--help={mode}"), shown(capsys, "--help", mode), shown(capsys, f"--mode={mode}", "--help"))
    assert len(set(pages)) == 1 and max(map(len, pages[0].splitlines())) <= 120
    flags = set(re.findall(r"^--(\w+)=", pages[0], flags=re.M)) - {"mode", "config", "workdir", "distributed"}
    assert flags == set(main.MODES[mode].flags)
    for flag in main.PROCESS_FLAGS:
        assert f"--{flag}=" in help.MODES["train"]


def test_help_on_an_unknown_mode_names_the_modes(capsys):
    assert main.main(["main.py", "--help=fly"]) == 2
    assert "--help=fly must be one of train, eval, predict" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["mevit_b16", "stat_t32", "msca_b16:released", "swin_t"])
def test_a_config_without_data_names_commands_with_data(config, capsys, monkeypatch, tmp_path):
    file, _, variant = config.partition(":")
    flag = f"--config={ROOT}/configs/{file}.py" + f":{variant}" * bool(variant)
    monkeypatch.chdir(tmp_path)
    assert main.main(["main.py", flag]) == 2
    out, err = capsys.readouterr()
    assert f"{flag} names no data" in one_sentence(err) and not list(tmp_path.iterdir())
    monkeypatch.chdir(ROOT)
    commands = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("  python")]
    assert len(commands) == 3
    parsed = [main.parse([word.replace("=DIR", f"={tmp_path}") for word in command]) for command in commands]
    expected = main.parse(["main.py", flag]).config["model"]["name"]
    assert {command.config["model"]["name"] for command in parsed} == {expected}
    assert parsed[-1].config["data"]["source"] == "ucf101"
    for command in parsed:  # these commands have data, or name the folder that has none
        main._require_data(command)
    (tmp_path / "train.csv").touch()
    monkeypatch.chdir(tmp_path)
    main._require_data(main.parse(["main.py", flag]))
    main._require_data(main.parse(["main.py", flag, "--mode=summary"]))
