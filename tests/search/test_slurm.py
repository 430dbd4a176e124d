"""Slurm's executor with stand-ins for Slurm's programs, which run jobs on this machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from esmfold_peft.config import ExecutorConfig
from esmfold_peft.errors import UserError
from esmfold_peft.search.attempt import attempts
from esmfold_peft.search.executors.slurm import SlurmExecutor
from tests.search.test_attempt import until

pytest.importorskip("submitit")

STAND_IN = f"""#!{sys.executable}
import os, pathlib, re, signal, subprocess, sys
folder, name = pathlib.Path(__file__).parent, pathlib.Path(sys.argv[0]).name
words = sys.argv[1:]
if name == "sbatch":
    number = 100 + len(list(folder.glob("script_*")))
    script = pathlib.Path(words[-1]).read_text()
    (folder / f"script_{{number}}").write_text(script)
    array = re.search(r"--array=(\\d+)-(\\d+)", script)
    parts = range(int(array[1]), int(array[2]) + 1) if array else [None]
    for part in parts:
        own = dict(os.environ, SLURM_JOB_ID=str(number), SLURM_JOB_NUM_NODES="1", SLURM_NTASKS="1",
                   SLURM_NODEID="0", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_NODELIST="here")
        if part is not None:
            own |= dict(SLURM_ARRAY_JOB_ID=str(number), SLURM_ARRAY_TASK_ID=str(part))
        null = subprocess.DEVNULL
        done = subprocess.Popen(["bash", words[-1]], env=own, stdin=null, stdout=null, stderr=null,
                                start_new_session=True)
        suffix = "" if part is None else f"_{{part}}"
        (folder / f"pid_{{number}}{{suffix}}").write_text(str(done.pid))
    print(f"Submitted batch job {{number}}")
if name == "srun":
    at = next(i for i, word in enumerate(words) if word.endswith(("python", sys.executable)))
    os.execv(words[at], words[at:])
if name == "squeue":
    option, _, value = words[-1].partition("=")
    asked = "*" if option == "--name" else value
    found = [path for path in folder.glob(f"pid_{{asked}}")]
    if not found and option == "--jobs":
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    for path in found:
        script = folder / f"script_{{path.name.split('_')[1]}}"
        named = option == "--jobs" or f"--job-name={{value}}" in script.read_text().split()
        if named and pathlib.Path(f"/proc/{{path.read_text()}}").exists():
            print(path.name.removeprefix("pid_"))
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def trial(tmp_path: Path, name: str) -> Path:
    """A trial whose training ends at once, with exit code 2: its settings are wrong."""
    folder = tmp_path / "trials" / name
    folder.mkdir(parents=True)
    (folder / "trial.yaml").write_text("wrong: true\n")
    return folder


def test_jobs_of_a_pair_are_an_array_that_a_restarted_search_finds(tmp_path: Path, cluster: Path):
    config = ExecutorConfig(kind="slurm", slurm={"slurm_partition": "gpu", "timeout_min": 60})
    pair = [trial(tmp_path, "a"), trial(tmp_path, "b")]
    handles = SlurmExecutor(config, tmp_path / "search", 0).start(pair)
    assert handles == [{"job_id": "100_0"}, {"job_id": "100_1"}]
    script = (cluster / "script_100").read_text()
    assert "--partition=gpu" in script
    assert "--time=60" in script
    assert "--gpus-per-node" not in script
    later = SlurmExecutor(config, tmp_path / "search", 0)
    assert not later.alive(pair[0])  # nobody has told it of them
    for each, handle in zip(pair, handles, strict=True):
        later.adopt(each, handle)
    assert all(later.alive(each) for each in pair)
    until(lambda: not any(later.alive(each) for each in pair))
    assert [attempts(each)[-1].code for each in pair] == [2, 2]


def test_gpus_are_asked_for_and_a_forgotten_job_is_gone(tmp_path: Path, cluster: Path):
    config = ExecutorConfig(kind="slurm", cpus=3)
    executor = SlurmExecutor(config, tmp_path / "search", 2)
    own = trial(tmp_path, "a")
    executor.start([own])
    script = (cluster / "script_100").read_text()
    assert "--gpus-per-node=2" in script
    assert "--cpus-per-task=3" in script
    assert "--time=1440" in script
    executor.adopt(own, {"job_id": "7"})
    assert not executor.alive(own)


def test_a_search_that_was_killed_while_it_submitted_finds_its_jobs(tmp_path: Path, cluster: Path):
    config = ExecutorConfig(kind="slurm")
    one, two = trial(tmp_path, "a"), trial(tmp_path, "b")
    SlurmExecutor(config, tmp_path / "search", 0).start([one])
    SlurmExecutor(config, tmp_path / "another search", 0).start([two])
    later = SlurmExecutor(config, tmp_path / "search", 0)
    later.adopt(one, {})
    assert later.alive(one)
    until(lambda: not later.alive(one))
    assert attempts(one)[-1].code == 2
    known = SlurmExecutor(config, tmp_path / "another search", 0)
    known.adopt(two, {"job_id": "101"})
    known.adopt(one, {})
    assert not known.alive(one)  # all jobs of that search are known


JOB = """
import signal, sys
from esmfold_peft.search.executors.slurm import SlurmTrial
trial = SlurmTrial(sys.argv[1])
def before_the_limit(*_):
    print(trial.checkpoint().function.folder)
    sys.exit()
signal.signal(signal.SIGUSR2, before_the_limit)
trial()
"""


def test_before_a_time_limit_a_trial_is_stopped_and_asked_for_again(tmp_path: Path):
    # As submitit does: in the thread that waits for the trial.
    folder = trial(tmp_path, "a")
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, str(folder)], stdout=subprocess.PIPE, text=True
    )
    until(lambda: bool(attempts(folder)))
    process.send_signal(signal.SIGUSR2)
    printed, _ = process.communicate(timeout=60)
    assert printed.strip() == str(folder)
    assert attempts(folder)[-1].code == -15  # SIGTERM, before training has begun to save


def test_jobs_have_the_name_of_their_search():
    with pytest.raises(UserError, match=r"executor.slurm: the search sets the name of its jobs"):
        ExecutorConfig(kind="slurm", slurm={"name": "mine"})


@pytest.mark.parametrize(
    ("options", "said"), [({"partitoin": "gpu"}, "partitoin"), ({"timeout_min": "long"}, "long")]
)
def test_a_wrong_option_is_one_line(options, said, tmp_path: Path, cluster: Path):
    with pytest.raises(UserError, match=said) as found:
        SlurmExecutor(ExecutorConfig(kind="slurm", slurm=options), tmp_path, 0)
    assert str(found.value).startswith("executor.slurm: ")
    assert "\n" not in str(found.value)


def test_a_machine_without_slurm_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch on this machine"):
        SlurmExecutor(ExecutorConfig(kind="slurm"), tmp_path, 0)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'esmfold-peft\[slurm\]'"):
        SlurmExecutor(ExecutorConfig(kind="slurm"), tmp_path, 0)
