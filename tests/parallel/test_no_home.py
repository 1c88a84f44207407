"""Without a home folder that can be written to, commands work or say in one sentence what to set."""

import pwd
from types import SimpleNamespace

import pytest

from vidformers import ConfigError
from vidformers.parallel import compilation_cache
from vidformers.pretrained.files import open_file


@pytest.fixture
def cache(monkeypatch):
    """The options of JAX that `enable_compilation_cache` sets, without a home folder or a user."""
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    options = {"jax_compilation_cache_dir": None}
    config = SimpleNamespace(values=options, update=options.__setitem__)
    monkeypatch.setattr(compilation_cache, "jax", SimpleNamespace(config=config))
    return options


@pytest.mark.quick
@pytest.mark.parametrize("home, reason", [(None, "there is no home folder"), ("/proc/none", "/proc/none: ")])
def test_programs_are_not_cached_and_it_is_said(cache, home, reason, monkeypatch, capsys):
    if home:
        monkeypatch.setenv("HOME", home)
    compilation_cache.enable_compilation_cache("runs/x")
    assert cache == {"jax_compilation_cache_dir": None}
    printed = capsys.readouterr().out
    assert printed.startswith(f"Compiled programs are not cached ({reason}") and "Set XDG_CACHE_HOME" in printed


@pytest.mark.quick
def test_downloads_need_a_folder(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"init\.weights=owner/name needs a folder for downloads.* Set HF_HOME\."):
        open_file("owner/name")
    assert not list(tmp_path.iterdir())  # no folder named ~
