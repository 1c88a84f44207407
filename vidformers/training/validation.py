"""Evaluation on the validation videos: during training, and of a checkpoint by `--mode=eval`."""

import itertools
import math
from contextlib import closing, nullcontext
from pathlib import Path

import jax

from input_pipeline import DataError
from input_pipeline.files import write_text
from input_pipeline.outputs import output_file
from input_pipeline.parts import PARTS
from vidformers.errors import require
from vidformers.parallel import memory
from vidformers.progress import Bar, log, table
from vidformers.training.answers import ANSWERS, answer_lines, write_answers
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.evaluate import EvalProtocol, EvalResult
from vidformers.training.remarks import VideoRemarks
from vidformers.training.reports import draw_result, print_report, result_json, result_rows
from vidformers.training.setup import Setup, initialise, load_weights, set_up
from vidformers.training.split import lists_to_evaluate
from vidformers.training.step import State
from vidformers.training.stopping import StopSignal
from vidformers.training.workdir import open_workdir


class Validation:
    """Evaluates parameters on a part of the data by one protocol, once or several times.

    The first evaluation chooses the batch size and starts the decoding workers. They are kept for the later
    evaluations, for which they decode the first batches in advance.

    Args:
        setup: the setup of the run.
        workdir: the folder of the run.
        protocol: the protocol.
        evaluations: the number of evaluations that are expected. The workers decode no more than these need, and end
            after the last one.
        part: 'train', 'val' or 'test'.
    """

    def __init__(self, setup: Setup, workdir: Path, protocol: EvalProtocol, evaluations: int = 1, part: str = "val"):
        self.setup, self._workdir, self.protocol, self._part = setup, workdir, protocol, part
        self._evaluations_left = evaluations
        self._records = setup.pipeline.manifest(part).records
        self._evaluator = setup.evaluator(protocol)
        self._batch_size, self._batches = 0, None
        self._remarks = VideoRemarks(self._records)

    def evaluate(self, parameters, step: int, stop: StopSignal) -> EvalResult | None:
        """Evaluates the `parameters` of a step, and writes `answers.jsonl` in the workdir.

        Returns:
            The result, or None if a signal has stopped the evaluation.
        Raises:
            DataError: a video cannot be decoded and `eval.on_bad` is 'error'.
        """
        records, name, main = self._records, self.protocol.name, jax.process_index() == 0

        def make_error(video_id: int, error: str) -> DataError:
            return DataError(
                f"{records[video_id].path} of data.{self._part} cannot be decoded: {error}. Set eval.on_bad=skip "
                "to leave out such videos."
            )

        if self._batches is None:
            self._start(parameters)
        batches = itertools.islice(self._batches, math.ceil(len(records) / self._batch_size))
        batches = map(self._remarks.log_local, batches)
        with Bar(f"eval {name}", len(records), shown=main) as bar:
            result = self._evaluator(parameters, batches, make_error, stop, bar.advance, f"data.{self._part}")
            if result is None:
                return None
            scoring = self._evaluator.scoring
            score = result.metrics[f"val/{scoring.main_metric}@{name}"]
            bar.status(f"step {step}  {scoring.headline} {score:.2%}")
        self._evaluations_left -= 1
        if not self._evaluations_left:
            self.close()
        if main:
            for video_id, error in result.skipped:
                log(f"Skipped {records[video_id].path}, which cannot be decoded: {error}")
            self._write_answers(result, step)
        return result

    def _write_answers(self, result: EvalResult, step: int) -> None:
        pipeline, scoring = self.setup.pipeline, self._evaluator.scoring
        lines = answer_lines(step, result, scoring, self._records, pipeline.root, pipeline.class_names)
        write_answers(self._workdir, {"protocol": self.protocol.name, "part": self._part}, lines)

    def _start(self, parameters) -> None:
        """Chooses the batch size, and starts the workers."""
        self._batch_size = self._batch_size or self._choose_batch_size(parameters)
        self._batches = self.setup.pipeline.val_batches(
            batch_size=self._batch_size,
            clips=self.protocol.clips,
            crops=self.protocol.crops,
            frames=self.protocol.frames,
            records=self._records,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            passes=max(self._evaluations_left, 1),
        )

    def _choose_batch_size(self, parameters) -> int:
        """Returns the batch size of an evaluation that may run while the whole training state is on the devices."""
        setup, data = self.setup, self.setup.config["data"]
        state_bytes, parameter_bytes = (
            sum(memory.shard_bytes(leaf) for leaf in jax.tree.leaves(tree))
            for tree in (setup.abstract, setup.abstract.eval_parameters)
        )
        return self._evaluator.choose_batch_size(
            parameters,
            self.protocol.frames or data["frames"],
            data["size"],
            other_bytes=state_bytes - parameter_bytes,
            max_batch_bytes=setup.pipeline.max_batch_bytes,
            max_videos=-(-len(self._records) // max(setup.pipeline.workers, 1)),
        )

    def close(self) -> None:
        """Ends the workers."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def evaluate(config: dict, path, part: str | None = None) -> dict:
    """Runs `--mode=eval`: evaluates a checkpoint in the workdir `path`, writes and draws the result.

    If the workdir holds no checkpoints, the weights that `init.weights` names are evaluated.

    Args:
        config: the config as nested dicts.
        path: the workdir.
        part: the part of the data, 'train', 'test', or by default 'val'. The names of the metrics begin with it.
    Returns:
        The metrics.

    Raises:
        ConfigError, DataError: an invalid config field or data file, or there is nothing to evaluate, or another
            command writes the result of the same protocol in `path`.
        Interrupted: a signal stopped the evaluation.
    """
    part = part or "val"
    require(part in PARTS, f"--part={part} must be {', '.join(PARTS[:-1])} or {PARTS[-1]}.")
    lists, sentences = lists_to_evaluate(path, config["data"], part)
    setup, workdir, is_main = set_up(config, False, part=part, lists=lists), Path(path), jax.process_index() == 0
    for sentence in sentences if is_main else ():
        log(sentence)
    name = setup.protocol.name if part == "val" else f"{part}_{setup.protocol.name}"
    file = workdir / f"eval_{name}.json"
    has_checkpoints = (workdir / "checkpoints").is_dir()
    require(has_checkpoints or setup.init.weights is not None, f"--workdir={workdir} holds no checkpoints to evaluate.")
    open_workdir(workdir)
    with output_file(file) if is_main else nullcontext():
        state, step = (
            _state_of_checkpoint(setup, workdir) if has_checkpoints else (_state_of_weights(setup, workdir), 0)
        )
        with StopSignal() as stop, closing(Validation(setup, workdir, setup.protocol, part=part)) as validation:
            result = validation.evaluate(state.eval_parameters, step, stop)
            if result is None:
                raise stop.interruption("Stopped. The evaluation is not finished: the same command starts it again.")
        named = result.of_part(part)
        if is_main:
            table(f"{workdir} at step {step}", result_rows(named))
            write_text(file, result_json(setup, step, named))
            log(f"Wrote {file} with the metrics of each class, and a line for each video to {workdir / ANSWERS}.")
            if part == "val":
                draw_result(setup, workdir, result)
    return named.metrics


def _state_of_checkpoint(setup: Setup, workdir: Path) -> tuple[State, int]:
    with Checkpoints(workdir, **setup.config["checkpoint"], read_only=True) as checkpoints:
        restored = checkpoints.restore(setup.abstract, setup.protocol.checkpoint)
    require(restored is not None, f"--workdir={workdir} holds no complete checkpoint to evaluate.")
    state, _, step = restored
    return state, step


def _state_of_weights(setup: Setup, workdir: Path) -> State:
    """Returns a state with the weights that `init.weights` names, which must set every parameter of the model."""
    pretrained = load_weights(setup)
    pretrained.require_complete()
    if jax.process_index() == 0:
        write_text(workdir / "init.json", pretrained.report())
        print_report(pretrained)
    return initialise(setup, pretrained)
