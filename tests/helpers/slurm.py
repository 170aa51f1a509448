"""A Slurm of one node on this machine, for tests; needs Debian's packages and root.

apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue", "munged")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=2
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=16000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
CORES = 3
START_S, END_S = 20, 10
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def why_no_slurm() -> str | None:
    """Explain why no Slurm can be started here; None if one can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "slurmd needs root"


class Slurm:
    """A running Slurm; its commands are given `environment`."""

    def __init__(self, folder: Path) -> None:
        self.folder = self.programs = folder
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        self.environment = dict(os.environ, SLURM_CONF=f"{folder}/slurm.conf", PATH=path)

    def put_first(self, programs: Path) -> None:
        """Put a folder of programs first in the path; jobs do so by ``setup``."""
        self.programs = programs
        self.environment["PATH"] = f"{programs}:{self.environment['PATH']}"

    def run(self, *words: str) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def states(self, job: str) -> dict[str, dict[str, str]]:
        """Return what `scontrol show job` prints of a job or each task of an array."""
        found = {}
        for line in self.run("scontrol", "--oneliner", "show", "job", job).splitlines():
            of = dict(word.split("=", 1) for word in line.split() if "=" in word)
            found[of.get("ArrayTaskId", of["JobId"])] = of
        return found

    def kill(self, job: str) -> None:
        """Kill the processes of a running job, as for want of memory."""
        [of] = self.states(job).values()
        for line in self.run("scontrol", "listpids", of["JobId"]).splitlines()[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)

    def wait(self, jobs: Sequence[str], *, timeout_s: float = 300) -> dict[str, list[str]]:
        """Wait until jobs have ended; return the states of the tasks of each."""
        states: dict[str, list[str]] = {}

        def have_ended() -> bool:
            states.update(
                {job: [of["JobState"] for of in self.states(job).values()] for job in jobs}
            )
            return all(state in ENDED for of in states.values() for state in of)

        self.until(have_ended, timeout_s=timeout_s, what=f"jobs {jobs}")
        return states

    def until(self, done: Callable[[], bool], *, timeout_s: float = 120, what: str = "it") -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline, f"{what}: not in {timeout_s} s\n{self.describe()}"
            time.sleep(0.2)

    def describe(self) -> str:
        """Describe the queue, for a message."""
        log = (self.folder / "slurmctld.log").read_text(errors="replace")[-2000:]
        return f"{self.run('squeue')}\n{log}"


@contextlib.contextmanager
def run_slurm(folder: Path) -> Iterator[Slurm]:
    """Start munge, a controller and a node; stop them, and all jobs, at the end."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    config = CONFIG.format(host=host, ports=_free_ports(2), folder=folder, cores=CORES)
    (folder / "slurm.conf").write_text(config)
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.chmod(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    slurm = Slurm(folder)
    paths = {
        name: f"--{option}={folder}/munge.{name}"
        for name, option in (("socket", "socket"), ("key", "key-file"), ("pid", "pid-file"),
                             ("log", "log-file"), ("seed", "seed-file"))
    }  # fmt: skip
    try:
        slurm.run("munged", "--force", *paths.values())
        slurm.run("slurmctld", "-f", f"{folder}/slurm.conf")
        slurm.run("slurmd", "-f", f"{folder}/slurm.conf", "-N", host)
        slurm.until(
            lambda: slurm.run("sinfo", "-h", "-o", "%t") == "idle", timeout_s=START_S, what="node"
        )
        yield slurm
    finally:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            slurm.run("scancel", "--signal=KILL", "--full", "--user=root")
            slurm.run("scancel", "--user=root")
            slurm.until(lambda: not slurm.run("squeue", "-h"), timeout_s=END_S)
        for name in ("slurmd", "slurmctld", "munge"):
            _end(folder / f"{name}.pid")


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _end(pid_file: Path) -> None:
    """End the daemon that wrote a file with its number, and wait for it."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + END_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
