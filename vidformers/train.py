"""The trainer: one straight loop over batches, and what surrounds it."""

import json
import signal
import time
from collections import deque
from functools import partial
from pathlib import Path

import jax
import numpy as np

from input_pipeline import DataError
from vidformers import workdir as folders
from vidformers.checkpoint import Checkpoints
from vidformers.errors import ConfigError, require
from vidformers.evaluate import Evaluator, Protocol, Result
from vidformers.metrics import MetricWriter, draw_confusion, draw_curves, replace_text
from vidformers.progress import Bar, say, table
from vidformers.setup import Setup, compile_to_fit, set_up
from vidformers.sharding import put_batch
from vidformers.step import State, initial_state


class Stop:
    """Turns the first SIGTERM or ctrl-C into a wish, so that the loop ends after a whole step; the second kills."""

    def __enter__(self):
        self.signal = None
        self.before = {number: signal.signal(number, self._wish) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _wish(self, number, _):
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Interrupted(Exception):
    """A run that was asked to stop, has saved, and can go on; `signal` says by what."""

    def __init__(self, sentence: str, number: int):
        super().__init__(sentence)
        self.signal = number


def train(config: dict, path) -> dict:
    """Trains as `config` says in the folder `path`, continuing what it holds; returns the last figures.

    Raises:
        ConfigError, DataError: a mistake, in one sentence.
        Interrupted: asked to stop; the state is saved.
    """
    begun = time.perf_counter()
    setup = set_up(config)
    workdir = folders.open_workdir(path)
    main = jax.process_index() == 0
    held = folders.lock(workdir) if main else None
    val = setup.pipeline.val_manifest
    data = {"train": setup.pipeline.train_manifest.digest, "val": val.digest,
            "train_videos": len(setup.pipeline.train_manifest.records), "val_videos": len(val.records)}
    if main:
        folders.claim(workdir, folders.describe(config, data), say)
    checkpoints = Checkpoints(workdir, **config["checkpoint"])
    restored = checkpoints.restore(setup.abstract)
    phases = {"set-up": time.perf_counter() - begun}

    def phase(name, since):
        phases[name] = phases.get(name, 0.0) + time.perf_counter() - since

    since = time.perf_counter()
    if restored:
        state, progress, start = restored
        say(f"Continues {workdir} at step {start} of {setup.total_steps}.")
    else:
        init = partial(initial_state, setup.make_model, setup.optimizer, config["optim"]["ema_decay"], config["seed"])
        state, progress, start = jax.jit(init, out_shardings=setup.shardings)(), {"bad_in_pass": 0, "bad": {}}, 0
    writer = MetricWriter(workdir, start) if main else None
    compiled = compile_to_fit(setup) if start < setup.total_steps else None
    phase("compiling", since)
    evaluators = {}

    def evaluate(protocol: Protocol, step: int) -> Result:
        since = time.perf_counter()
        if protocol.name not in evaluators:
            evaluators[protocol.name] = setup.evaluator(protocol)
        result = run_evaluation(setup, evaluators[protocol.name], state.evaluated, protocol)
        if main:
            writer.write(step, result.figures)
        phase("evaluating", since)
        return result

    quick = Protocol(**{**config["eval"], "clips": 1, "crops": 1})
    bad = BadVideos(setup, progress)
    final = None
    with Stop() as stop:
        def must_know(step):
            """Whether the state after `step` may be saved, so that all losses up to it must be known to be finite."""
            return bool(stop.signal or step % checkpoints.every_steps == 0
                        or setup.eval_every and step % setup.eval_every == 0)

        if start < setup.total_steps:
            since = time.perf_counter()
            before = phases.get("evaluating", 0.0)
            for step, state, logged, known in steps(setup, compiled, state, start, bad, must_know):
                if logged and main:
                    writer.write(step, logged)
                figures = None
                if setup.eval_every and step % setup.eval_every == 0 and step < setup.total_steps:
                    figures = evaluate(quick, step).figures
                if step == setup.total_steps:
                    final = evaluate(setup.protocol, step)
                    figures = final.figures
                asked = known and stop.signal is not None
                if asked or step == setup.total_steps or figures or step % checkpoints.every_steps == 0:
                    checkpoints.save(step, state, bad.progress, figures)
                if asked and step < setup.total_steps:
                    checkpoints.wait()
                    raise Interrupted(f"Stopped at step {step} of {setup.total_steps}, which is saved: the same "
                                      "command continues.", stop.signal)
            phase("training", since)
            phases["training"] -= phases.get("evaluating", 0.0) - before
        if final is None:
            final = evaluate(setup.protocol, setup.total_steps)
    checkpoints.wait()
    if main:
        writer.close()
        close(setup, workdir, final, phases, start)
        held.close()
    return final.figures


class BadVideos:
    """Counts the rows that would not decode, names each file once, and ends a run that meets too many."""

    def __init__(self, setup: Setup, progress: dict):
        self.records, self.setup, self.progress = setup.pipeline.train_manifest.records, setup, progress

    def meet(self, step: int, batch: dict) -> None:
        """Looks at the batch of `step`, counted from 0."""
        size = self.setup.loop.batch_size
        if step and step * size // len(self.records) != (step - 1) * size // len(self.records):
            self.progress = {**self.progress, "bad_in_pass": 0}
        rows = np.flatnonzero(batch["mask"] == 0)
        if not rows.size:
            return
        known = dict(self.progress["bad"])
        for row in rows:
            path = self.records[int(batch["id"][row])].path
            if path not in known:
                say(f"Left out, it will not decode: {path}: {batch['error'][row].decode('utf-8', 'replace')}")
            known[path] = known.get(path, 0) + 1
        self.progress = {"bad_in_pass": self.progress["bad_in_pass"] + int(rows.size), "bad": known}
        most = self.setup.pipeline.max_bad_fraction
        if self.progress["bad_in_pass"] > most * len(self.records):
            raise DataError(f"{self.progress['bad_in_pass']} of {len(self.records)} videos of this pass would not "
                            f"decode, more than data.max_bad_fraction={most} allows; one of them: {path}.")


def steps(setup: Setup, compiled, state: State, start: int, bad: BadVideos, must_know):
    """Yields (steps done, state, figures since the last log or None, known) after each step.

    Figures are fetched late, so that the host runs ahead of the devices by two steps at most; `known` says that all
    losses so far were fetched and finite, as they are wherever `must_know(steps done)`.

    Raises:
        ConfigError: a loss that is not finite, naming its step.
    """
    loop = setup.loop
    batches = setup.pipeline.train_batches(
        batch_size=loop.batch_size, seed=setup.config["seed"], start=start,
        process_index=jax.process_index(), process_count=jax.process_count())
    running, done, waited, since = deque(), [], 0.0, time.perf_counter()
    try:
        with Bar("train", setup.total_steps, start, shown=jax.process_index() == 0) as bar:
            for step in range(start, setup.total_steps):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                bad.meet(step, batch)
                state, figures = compiled(state, put_batch(setup.mesh, {k: batch[k] for k in
                                                                        ("video", "label", "mask")}))
                running.append((step + 1, figures))
                whole = (step + 1) % loop.log_every_steps == 0 or step + 1 == setup.total_steps
                known = whole or must_know(step + 1)
                while len(running) > (0 if known else 2):
                    done.append(_fetch(*running.popleft()))
                bar.advance()
                logged = None
                if whole:
                    seconds = time.perf_counter() - since
                    logged = _log(done, seconds, waited, loop.batch_size)
                    bar.figures(f"loss {logged['train/loss']:.3f}  top-1 {logged['train/top1']:.1%}  "
                                f"{logged['train/clips_per_second']:.0f} clips/s  "
                                f"data wait {logged['train/data_wait']:.1%}")
                yield step + 1, state, logged, known
                if whole:
                    done, waited, since = [], 0.0, time.perf_counter()
    finally:
        batches.close()


def _fetch(step: int, figures: dict) -> dict:
    figures = {name: float(value) for name, value in figures.items()}
    if not np.isfinite(figures["loss"]):
        raise ConfigError(f"The loss is {figures['loss']} at step {step}: lower optim.lr, set optim.clip_norm, or use "
                          "model.dtype=float32. The checkpoints before it are whole.")
    return figures


def _log(done: list[dict], seconds: float, waited: float, batch_size: int) -> dict:
    weights = np.array([figures["count"] for figures in done])
    logged = {f"train/{name}": float(np.average([f[name] for f in done], weights=weights if weights.any() else None))
              for name in ("loss", "top1")}
    return logged | {"train/gradient_norm": done[-1]["gradient_norm"], "train/lr": done[-1]["lr"],
                     "train/clips_per_second": len(done) * batch_size / seconds, "train/data_wait": waited / seconds,
                     "train/bad_rows": len(done) * batch_size - float(weights.sum())}


def run_evaluation(setup: Setup, evaluator: Evaluator, parameters, protocol: Protocol) -> Result:
    """Evaluates parameters on `data.val`. Raises DataError naming a video that will not decode."""
    records = setup.pipeline.val_manifest.records
    batches = setup.pipeline.val_batches(
        batch_size=protocol.batch_size, clips=protocol.clips, crops=protocol.crops,
        process_index=jax.process_index(), process_count=jax.process_count())

    def bad_video(row: int, error: str) -> DataError:
        return DataError(f"{records[row].path} of data.val will not decode: {error}; eval.on_bad=skip leaves such "
                         "videos out.")

    try:
        with Bar(f"eval {protocol.name}", len(records), shown=jax.process_index() == 0) as bar:
            result = evaluator(parameters, batches, bad_video, bar.advance)
            bar.figures(f"top-1 {result.figures[f'val/top1@{protocol.name}']:.2%}")
    finally:
        batches.close()
    for row, error in result.skipped:
        say(f"Left out, it will not decode: {records[row].path}: {error}")
    return result


def evaluate(config: dict, path) -> dict:
    """`--mode=eval`: evaluates a checkpoint of the folder `path` and draws its confusion matrix."""
    setup = set_up(config)
    workdir = Path(path)
    require((workdir / "checkpoints").is_dir(), f"--workdir={workdir} holds no checkpoints to evaluate.")
    restored = Checkpoints(workdir, **config["checkpoint"]).restore(setup.abstract, setup.protocol.checkpoint)
    require(restored is not None, f"--workdir={workdir} holds no whole checkpoint to evaluate.")
    state, _, step = restored
    result = run_evaluation(setup, setup.evaluator(setup.protocol), state.evaluated, setup.protocol)
    if jax.process_index() == 0:
        replace_text(workdir / f"eval_{setup.protocol.name}.json", _as_json(step, result))
        _confusion(setup, workdir, result)
        table(f"{workdir} at step {step}", _rows(result))
    return result.figures


def close(setup: Setup, workdir: Path, result: Result, phases: dict, start: int) -> None:
    """The pictures and the closing table."""
    since = time.perf_counter()
    draw_curves(workdir)
    _confusion(setup, workdir, result)
    phases["drawing"] = time.perf_counter() - since
    rows = _rows(result)
    clips = (setup.total_steps - start) * setup.loop.batch_size
    if clips and "training" in phases:
        rows += [("clips/s in training", f"{clips / phases['training']:.0f}")]
    rows += [(name, f"{seconds:.1f} s") for name, seconds in phases.items()]
    table(str(workdir), rows)


def _rows(result: Result) -> list[tuple[str, str]]:
    percent = ("top1", "top5", "mean_class_top1")
    return [(name, f"{value:.2%}" if name.split("/")[1].split("@")[0] in percent else f"{value:g}")
            for name, value in result.figures.items()]


def _as_json(step: int, result: Result) -> str:
    return json.dumps({"step": step, **result.figures, "skipped": result.skipped,
                       "confusion": result.confusion.tolist()}) + "\n"


def _confusion(setup: Setup, workdir: Path, result: Result) -> None:
    names = setup.pipeline.class_names
    top1 = result.figures[f"val/top1@{setup.protocol.name}"]
    draw_confusion(workdir, result.confusion, names, f"top-1 {top1:.1%} ({setup.protocol.name} views)")
