"""A command inside a container: Apptainer, Podman or Docker, rootless and without the network.

Model, data and recipe are bound read-only, the run directory and a cache for writing, each under
the path that it has outside, so that a recipe, a manifest and an error message mean the same on
both sides. Files belong to the caller. An image is never pulled: it has to be there.

Options come in groups, one a line of a script.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import EnvironmentProblem, InputError

__all__ = ["GPUS", "KINDS", "Container", "gpus_here", "require_image"]

KINDS = ("apptainer", "podman", "docker")
GPUS = ("cuda", "rocm", "none")
# Libraries that would look for their files on a hub, and what else asks the network.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONPATH": "",
}
# Without a network the machine's own name has no address.
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
_CARDS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_RAY = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
_BAD = ',:"\n'


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """How a command is put into a container.

    `reads` and `writes` are absolute paths that exist when it starts. `has_network`: the host's
    network is used; without it there is none. `is_spread`: what a job says of its Ray cluster is
    handed in.
    """

    kind: str
    image: str
    gpus: str
    reads: tuple[Path, ...]
    writes: tuple[Path, ...]
    home: Path
    has_network: bool
    is_spread: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"--container {self.kind!r} is none that is known.", hint=", ".join(KINDS)
            )
        if self.gpus not in GPUS:
            raise InputError(f"--gpu {self.gpus!r} is none that is known.", hint=", ".join(GPUS))
        if not self.image or self.image.startswith("-") or "\n" in self.image:
            raise InputError(f"{self.image!r} is no image.", hint="--image paceline.sif")
        if self.kind == "apptainer" and "://" in self.image:
            raise InputError(
                f"{self.image} would be fetched when the run starts.",
                hint=f"apptainer build paceline.sif {self.image}   then --image paceline.sif",
            )
        for path in (*self.reads, *self.writes, self.home):
            if set(_BAD) & set(str(path)):
                raise InputError(
                    f'{path} cannot be bound into a container: its name has one of , : " in it.',
                    hint="a symbolic link does not help; move or rename it",
                )

    def groups(self) -> list[list[str]]:
        """The words before the command, in groups."""
        return self._apptainer() if self.kind == "apptainer" else self._engine()

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command inside the container."""
        return [word for group in self.groups() for word in group] + list(command)

    def _mounts(self) -> list[tuple[Path, bool]]:
        """(path, may be written), outer folders first."""
        every = dict.fromkeys(map(Path, _with_links(self.reads)), False)
        every |= dict.fromkeys(self.writes, True)
        return sorted(every.items(), key=lambda one: (len(one[0].parts), one[0]))

    def _environment(self) -> dict[str, str]:
        caches = {
            "XDG_CACHE_HOME": self.home / ".cache",
            "TRITON_CACHE_DIR": self.home / ".triton",
            "HF_HOME": self.home / ".huggingface",
        }
        values = _OFFLINE | {name: str(path) for name, path in caches.items()}
        return values if self.has_network else values | _LOOPBACK

    def _apptainer(self) -> list[list[str]]:
        groups = [["apptainer", "exec", "--no-eval", "--home", f"{self.home}:{self.home}"]]
        groups += [{"cuda": ["--nv"], "rocm": ["--rocm"]}[self.gpus]] if self.gpus != "none" else []
        for path, may_write in self._mounts():
            groups.append(["--bind", f"{path}:{path}:{'rw' if may_write else 'ro'}"])
        groups += [["--env", f"{name}={value}"] for name, value in self._environment().items()]
        return [*groups, ["--pwd", str(self.home)], [self.image]]

    def _engine(self) -> list[list[str]]:
        """Podman and Docker, which share most words."""
        groups = [[self.kind, "run", "--rm", "--init", "--pull", "never", *self._user()]]
        groups.append(["--network", "host" if self.has_network else "none", "--uts", "host"])
        # Ranks and servers hand each other tensors through shared memory.
        groups.append(["--ipc", "host", *self._limits()])
        groups += [self._devices()] if self.gpus != "none" else []
        for path, may_write in self._mounts():
            mount = f"type=bind,source={path},target={path}"
            groups.append(["--mount", mount if may_write else f"{mount},readonly"])
        environment = self._environment() | {"HOME": str(self.home)}
        groups += [["--env", f"{name}={value}"] for name, value in environment.items()]
        # A scheduler's choice of cards is handed in where it made one.
        handed = [*(_CARDS if self.gpus != "none" else ()), *(_RAY if self.is_spread else ())]
        groups += [["--env", name] for name in handed]
        return [*groups, ["--workdir", str(self.home)], [self.image]]

    def _user(self) -> list[str]:
        """Files belong to the caller, whatever user the image names."""
        caller = ["--user", f"{os.getuid()}:{os.getgid()}"]
        if self.kind == "podman":
            caller += ["--security-opt", "label=disable"]
            caller += ["--userns", "keep-id"] if os.getuid() else []
        return caller

    def _limits(self) -> list[str]:
        """Pinned memory without a limit, where a daemon of root's can lift it."""
        if self.kind == "podman":
            return ["--ulimit", "host"]
        return ["--ulimit", "memlock=-1", "--ulimit", "stack=67108864"]

    def _devices(self) -> list[str]:
        if self.gpus == "cuda":
            if self.kind == "podman":
                return ["--device", "nvidia.com/gpu=all"]
            return ["--gpus", "all"]
        groups = ["keep-groups"] if self.kind == "podman" else _owners_of_cards()
        return [
            *("--device", "/dev/kfd", "--device", "/dev/dri"),
            *(word for group in groups for word in ("--group-add", group)),
            *("--security-opt", "seccomp=unconfined"),
        ]


def gpus_here() -> str:
    """The kind of this machine's GPUs."""
    if Path("/dev/nvidiactl").exists():
        return "cuda"
    return "rocm" if Path("/dev/kfd").exists() else "none"


def require_image(container: Container, run: Callable[[list[str]], int]) -> None:
    """Raise EnvironmentProblem when the program or the image is not there.

    `run` runs a command without showing it, and returns its exit status.
    """
    kind, image = container.kind, container.image
    if shutil.which(kind) is None:
        raise EnvironmentProblem(
            f"There is no {kind} on this machine.",
            hint=f"install it, or --container with another of {', '.join(KINDS)}",
        )
    if kind == "apptainer":
        if not Path(image).exists():
            raise EnvironmentProblem(
                f"There is no image {image}.",
                hint=f"apptainer build {image} containers/paceline.def",
            )
        return
    if run([kind, "image", "inspect", image]) != 0:
        raise EnvironmentProblem(
            f"{kind} has no image {image}, or does not run.",
            hint=f"{kind} build -t {image} -f containers/Containerfile .   "
            f"({kind} image inspect {image} says why)",
        )


def _with_links(reads: Sequence[Path]) -> list[Path]:
    """The paths, and the folders that symbolic links in them lead to: a hub's cache has some."""
    found = dict.fromkeys(reads)
    for folder in reads:
        if folder.is_dir():
            for entry in folder.iterdir():
                target = entry.resolve()
                if entry.is_symlink() and not target.is_relative_to(folder):
                    found[target if target.is_dir() else target.parent] = None
    return list(found)


def _owners_of_cards() -> list[str]:
    """The groups that own an AMD GPU's devices; their usual names where there is none here."""
    devices = [Path("/dev/kfd"), *Path("/dev/dri").glob("renderD*")]
    groups = {str(path.stat().st_gid) for path in devices if path.exists()}
    return sorted(groups) or ["video", "render"]
