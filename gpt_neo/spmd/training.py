"""Training with an exported program: training as it is, whose step runs on devices of another process.

The session of the runtime reads the records, counts the steps, logs, watches and decides what is kept. The weights
and slots are on the devices; they are read when a checkpoint is written.
"""

from __future__ import annotations

import contextlib
import functools
import os
from types import TracebackType
from typing import Any, Callable, Optional, TypeVar

from gpt_neo import storage
from gpt_neo.checkpoint.folder import latest_checkpoint
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import GptNeoError
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime import estimator as runtime
from gpt_neo.runtime.hooks import Progress
from gpt_neo.runtime.mesh import whole_mesh
from gpt_neo.runtime.model_fn import TrainingSetup, saver_hook
from gpt_neo.runtime.profile import Profile, parse_span
from gpt_neo.runtime.watch import Watch, WatchHook
from gpt_neo.spmd.attention import PlatformAttention
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.hosts import check_shared
from gpt_neo.spmd.parts import fit_program
from gpt_neo.spmd.program import Program, export_train_step, initial_values
from gpt_neo.spmd.saver import DeviceSaver, DeviceSaves
from gpt_neo.spmd.steps import Steps, StepsHook, counted
from gpt_neo.storage import tensorflow as files

Result = TypeVar("Result")


class DeviceTraining:
    """Context of a training run on devices of JAX.

    Args:
      start: brings a program to devices; called when the graph is built, so that what is wrong with the run's folder
        or its records is told before.
      tell: called with lines for the person.
      attention: of the platform, where it has one of its own.
    """

    def __init__(
        self,
        run: RunConfig,
        start: Callable[[Program], Devices],
        tell: Callable[[str], None],
        attention: Optional[PlatformAttention] = None,
    ) -> None:
        self.run, self.start, self.tell, self.attention = run, start, tell, attention
        self.plan = whole_mesh(run.mesh)
        self.devices: Any = None
        self.saves: Optional[DeviceSaves] = None
        self.failure: Optional[GptNeoError] = None

    def train(
        self,
        folder: str,
        report: Callable[[Progress], None],
        watch: Watch,
        steps_per_checkpoint: int = 5000,
        steps_per_log: int = 10,
        save_minutes: float = 0.0,
        at_checkpoint: Optional[Callable[[int], bool]] = None,
        profile: Optional[str] = None,
    ) -> int:
        """As `runtime.estimator.train`, with the same words for what goes wrong.

        Args:
          profile: steps that are traced, FROM:TO.
        """
        leave = watch.leave
        watch.leave = lambda status: self.leave(status, leave)
        estimator = runtime.make_estimator(
            self.run,
            folder,
            self.plan,
            steps_per_checkpoint,
            report=report,
            watch=watch,
            steps_per_log=steps_per_log,
            save_minutes=save_minutes,
            at_checkpoint=at_checkpoint,
            profile=self.profile(profile, folder) if profile else None,
            # A plain function: TPUEstimator looks at its arguments.
            function=lambda setup: lambda features, labels, mode, params: self.train_spec(features, setup),
        )
        try:
            return runtime.train(Settled(estimator, self), self.run, self.plan, folder, self.tell, watch)
        except (tf.errors.OpError, GptNeoError):
            if self.failure is not None:  # what TensorFlow makes of it names a node of the graph
                raise self.failure from None
            raise

    def train_spec(self, batch: dict, setup: TrainingSetup) -> Any:
        """TPUEstimatorSpec of a session whose step is the program."""
        program = export_train_step(self.run, "weights" in batch, self.attention)
        existing = latest_checkpoint(setup.folder)
        if existing:
            fit_program(existing, program.description)  # before the compiler works for minutes
        self.devices = self.start(program)
        self.check_folder(setup.folder)
        compiled = ", with the program as compiled before" if self.devices.cached else ""
        self.tell(f"running on {len(self.devices.kinds)} x {self.devices.kinds[0]}{compiled}")
        setup.watch.mark()  # to export and to compile took its time
        saver = DeviceSaver(self.devices, self.run.training.keep_checkpoints, self.tell)
        tf.add_to_collection(tf.GraphKeys.SAVERS, saver)
        wanted = ["loss", "rate", *(["norm"] if self.run.training.log_grads else [])]
        steps = Steps(self.devices, wanted, setup.watch.time)
        progress = StepsHook(steps, setup)
        # What is done with a checkpoint before the next step waits for it.
        kind = functools.partial(
            DeviceSaves, beside=setup.at_checkpoint is None, before=progress.settle, owned=setup.watch.check_lock
        )
        self.saves = saver_hook(setup, saver, [], progress, kind=kind)
        return tf.estimator.tpu.TPUEstimatorSpec(
            mode=tf.estimator.ModeKeys.TRAIN,
            loss=tf.constant(0.0),  # not known yet: see `Steps`
            train_op=counted(steps, batch, self.noting),
            training_hooks=[
                StartHook(self.devices, saver),
                *setup.profile_hooks(),
                progress,
                WatchHook(setup.watch),
                self.saves,
            ],
        )

    def profile(self, text: str, folder: str) -> Profile:
        """Traces of the devices' process. Raises: ConfigError: as `parse_span`."""
        return Profile(*parse_span(text), folder, lambda to: self.devices.trace(to), lambda: self.devices.trace(None))

    def check_folder(self, folder: str) -> None:
        """See that other hosts have the same folder.

        Raises:
          CheckpointError: one has not.
        """
        if self.devices.hosts.count == 1 or files.is_remote(folder):
            return
        seen = os.path.join(folder, ".writable.hosts")  # a name that is removed where a kill leaves it
        storage.write_bytes(seen, b"")
        try:
            check_shared(self.devices.hosts, seen)
        finally:
            os.remove(seen)

    def beside(self, program: Program) -> Devices:
        """Another program on the devices of the training."""
        return self.devices.beside(program)

    def noting(self, act: Callable[[], Result]) -> Result:
        """Do something inside a graph, which turns every error into one of its own: keep ours."""
        self.failure = None  # an earlier one was got over, as where a save is tried again
        try:
            return act()
        except GptNeoError as error:
            self.failure = error
            raise

    def leave(self, status: int, leave: Callable[[int], None]) -> None:
        """End a run that is stuck, and the process that it may be stuck in."""
        if self.devices is not None:
            self.devices.kill()
        leave(status)

    def __enter__(self) -> DeviceTraining:
        """Nothing more to do."""
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        """Let go of the devices."""
        if self.devices is not None:
            self.devices.close()


class Settled:
    """An estimator whose training ends once the last checkpoint is written, also where an error ends it."""

    def __init__(self, estimator: Any, training: DeviceTraining) -> None:
        self.estimator, self.training = estimator, training

    def train(self, *args: Any, **options: Any) -> None:
        """As the estimator's."""
        try:
            self.estimator.train(*args, **options)
        except BaseException:
            if self.training.saves is not None:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    self.training.saves.settle()
            raise


class StartHook(tf.estimator.SessionRunHook):
    """Gives the devices what a new run starts from, where no checkpoint was restored."""

    def __init__(self, devices: Devices, saver: DeviceSaver) -> None:
        self.devices, self.saver = devices, saver

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Draw and place the variables, one at a time."""
        if self.saver.restored is None:
            for name, value in initial_values(self.devices.program):
                self.devices.put(name, value)
