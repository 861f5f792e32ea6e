"""The lifecycle node `perception`: camera images in, instances with masks and lasting ids out.

Run: `python -m ausm_ros.perception_node --ros-args -p checkpoint:=nano -r camera/image:=/camera/image_raw`
"""

import os
import sys
import threading
from contextlib import suppress
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter

from ausm.errors import AusmError
from ausm_ros.diagnostics import camera_statuses, memory_status, model_status, to_array
from ausm_ros.executor import Ration, ServiceThreadsExecutor
from ausm_ros.memory import share_one_heap
from ausm_ros.node_parameters import declare, plain
from ausm_ros.parameters import (
    SPECS,
    BadParameter,
    CameraSettings,
    Settings,
    Spec,
    camera_specs,
    check_change,
    make_camera_settings,
    make_settings,
    unknown,
)
from ausm_ros.run_node import make_node, until_shutdown
from ausm_ros.runtime import Runtime
from ausm_ros.services import Services
from ausm_ros.start import init_ros
from ausm_ros.transport import use_large_shared_memory

END = 8.0  # seconds to stop in
REMAP = "camera/image:=/camera/image_raw"  # what nearly every camera needs
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
ERROR = TransitionCallbackReturn.ERROR


class PerceptionNode(LifecycleNodeMixin, Node):
    """Declares the parameters, follows the lifecycle and owns the `Runtime` between configure and cleanup."""

    def __init__(self, **kwargs: Any) -> None:
        """Raises `BadParameter` for a value given at the start that is out of range."""
        Node.__init__(self, "perception", **kwargs)
        # rclpy's LifecycleNode would put its services in the default group: no state to be read while configuring
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._runtime: Runtime | None = None
        self._specs: dict[str, Spec] = {}
        self._epochs: dict[str, int] = {}
        self._error = ""
        self._transition = threading.Lock()
        self._configuring = False
        self._applying = threading.Lock()  # the last to hold it brings the newest values
        self._declare(SPECS)
        for camera in self._settings().cameras:
            self._declare(camera_specs(camera))
            make_camera_settings(camera, self._values())
        self._warn_of_unknown_parameters()
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._service_change_state.callback = self._answer_change_state(self._service_change_state.callback)
        self._services_of_ours = Services(self, lambda: self._runtime, self._set_discovery)
        timers = MutuallyExclusiveCallbackGroup()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # these go on when simulated time stands still
        self.create_timer(1.0, self._publish_diagnostics, callback_group=timers, clock=steady)
        self.create_timer(0.25, self._follow_publishers, callback_group=timers, clock=steady)
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1.0), on_clock_change=False)
        self._jump_handle = self.get_clock().create_jump_callback(threshold, post_callback=self._on_clock_jump)

    # --- parameters ---------------------------------------------------------------------------------------------

    @property
    def ration(self) -> Ration:
        """The callback group of the services."""
        return self._services_of_ours.ration

    def _declare(self, specs: tuple[Spec, ...]) -> None:
        for spec in specs:
            if not self.has_parameter(spec.name):
                declare(self, spec, "Read when the node is configured.")
            self._specs[spec.name] = spec

    def _warn_of_unknown_parameters(self) -> None:
        """rclpy says nothing of a value that was given for a parameter which nobody declares, as one misspelt."""
        for words in unknown(self._parameter_overrides, self._specs):
            self.get_logger().warning(words)

    def _values(self) -> dict[str, Any]:
        return {name: plain(self.get_parameter(name).value) for name in self._specs}

    def _settings(self, **changes: Any) -> Settings:
        return make_settings({**self._values(), **changes})

    def _camera_settings(self, settings: Settings) -> list[CameraSettings]:
        for camera in settings.cameras:
            self._declare(camera_specs(camera))
        return [make_camera_settings(camera, self._values()) for camera in settings.cameras]

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        changes, fixed = {}, self._configuring or self._runtime is not None
        try:
            for parameter in parameters:
                if spec := self._specs.get(parameter.name):
                    changes[parameter.name] = check_change(spec, plain(parameter.value), fixed)
            self._settings(**changes)
        except BadParameter as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, parameters: list[Parameter]) -> None:
        """The runtime takes over what is set now; while it is still being made, `on_configure` does this at the end."""
        with self._applying:
            if self._runtime is not None and any(p.name in self._specs for p in parameters):
                self._runtime.change(self._settings())

    def _set_discovery(self, discover: bool) -> str:
        result = self.set_parameters([Parameter("discovery", value=bool(discover))])[0]
        return "" if result.successful else str(result.reason)

    # --- lifecycle ----------------------------------------------------------------------------------------------

    def _answer_change_state(self, change: Any) -> Any:
        """rclpy gives no answer at all to a transition that is not possible now; ours is a refusal."""

        def answer(request: Any, response: Any) -> Any:
            if not self._transition.acquire(blocking=False):
                response.success = False
                return response
            try:
                return change(request, response)
            except rclpy_implementation.RCLError as error:
                self.get_logger().warning(f"transition refused: {str(error).splitlines()[0]}")
                response.success = False
                return response
            finally:
                self._transition.release()

        return answer

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Checks the parameters, loads the weights, warms up, makes the publishers."""
        self._configuring = True
        try:
            settings = self._settings()
            self._runtime = Runtime(self, settings, self._camera_settings(settings), self._epochs, self._on_fatal)
        except (AusmError, BadParameter, RuntimeError, MemoryError, OSError) as error:
            self._tell_error("not configured", error)
            return FAILURE
        finally:
            self._configuring = False
        with self._applying:  # what was changed since it began, seconds ago
            self._runtime.change(self._settings())
        self._error = ""
        values = self._runtime.model_values
        self.get_logger().info(
            f"configured in {values['configure_s']:.1f} s: checkpoint {values['checkpoint']} on {values['device']}, "
            f"cameras {' '.join(settings.cameras)}"
        )
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribes and starts the worker; a new epoch for every camera."""
        assert self._runtime is not None
        try:
            self._runtime.start()
        except Exception as error:  # rclpy would go on to `on_error` without a word
            self._tell_error("not activated, the node goes back to unconfigured", error)
            return ERROR
        topics = ", ".join(parts.camera.topic for parts in self._runtime.cameras.values())
        self.get_logger().info(f"active: listening to {topics}")
        return SUCCESS

    def _tell_error(self, what: str, error: Exception) -> None:
        self._error = f"{what}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        self.get_logger().error(self._error)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribes, lets the image in progress finish, keeps the weights."""
        assert self._runtime is not None
        self._runtime.stop()
        return SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Frees the weights, the states and the device's memory."""
        self._close()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._close()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured."""
        self._close()
        return SUCCESS

    def _close(self) -> None:
        with self._applying:  # a change of parameters in progress ends first, later ones find no runtime
            runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.close()

    def _on_fatal(self, reason: str) -> None:
        """The worker cannot go on: back to unconfigured, from a thread of its own, as the worker's ends now."""
        self._error = reason
        self.get_logger().fatal(f"{reason}; the node goes back to unconfigured")
        threading.Thread(target=self._give_up, name="ausm-give-up", daemon=True).start()

    def _give_up(self) -> None:
        with self._transition:
            for go in (self.trigger_deactivate, self.trigger_cleanup):
                with suppress(rclpy_implementation.RCLError):  # an operator may have done it meanwhile
                    go()

    def autostart(self) -> None:
        """Configures and activates, unless a parameter says otherwise or configuring fails."""
        with self._transition:
            if self._settings().autostart and self.trigger_configure() == SUCCESS:
                self.trigger_activate()

    # --- timers -------------------------------------------------------------------------------------------------

    def _follow_publishers(self) -> None:
        runtime = self._runtime
        if runtime is not None and runtime.active:
            for parts in runtime.cameras.values():
                parts.camera.follow_publisher()
                parts.camera.tell_silence()

    def _publish_diagnostics(self) -> None:
        runtime = self._runtime
        if runtime is None:
            statuses = [model_status({}, self._error or "unconfigured")]
        else:
            views = [parts.view() for parts in runtime.cameras.values()]
            statuses = [s for view in views for s in camera_statuses(view, runtime.settings)] if runtime.active else []
            model = model_status({**runtime.model_values, "active": runtime.active}, "")
            statuses += [memory_status(views, runtime.device), model]
        self._diagnostics.publish(to_array(self.get_clock().now().to_msg(), statuses, self.get_name()))

    def _on_clock_jump(self, jump: Any) -> None:
        runtime = self._runtime
        if runtime is not None and runtime.active:
            runtime.clock_jumped()


def _end_within(seconds: float) -> None:
    """The process ends by then, whatever still runs: a step on a busy machine, a model that is being loaded."""

    def end() -> None:
        print(f"perception_node: still busy {seconds:g} s after it was told to stop; it ends now", file=sys.stderr)
        sys.stderr.flush()
        os._exit(0)

    watch = threading.Timer(seconds, end)
    watch.daemon = True  # it does not keep alive a process that ends by itself
    watch.start()


def main(argv: list[str] | None = None) -> int:
    """Runs the node until it is told to stop; 2 for a parameter that is refused at the start."""
    share_one_heap()
    use_large_shared_memory()
    status = init_ros("perception_node", __doc__ or "", REMAP, argv)
    if status is not None:
        return status
    node = make_node(PerceptionNode, "perception_node")
    if node is None:
        return 2
    executor = ServiceThreadsExecutor(node.ration)
    executor.add_node(node)
    executor.submit(node.autostart)
    try:
        with until_shutdown():
            executor.spin()
    finally:
        _end_within(END)
        node._close()
        executor.shutdown(timeout_sec=1.0)
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
