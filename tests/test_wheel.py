"""The wheel, built as it is published and installed into an environment outside the repository, does what the pages show.

torch and the other dependencies are those of this environment. What is installed editable in it, which is the repository,
cannot be imported there: a file `.pth` in a folder that another one names is not read.
"""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

import pipeflow
from tests.launch.clusters import Cluster
from tests.small_runs import finish

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SMALL = "--model.width 8 --optim.batch_size 32 --schedule.local_epochs 1 --schedule.finetune_epochs 1 --run.device cpu"
IMAGES = """
import pipeflow
from pipeflow.data import dead_leaves

def images(options):
    print("images of", pipeflow.__file__, flush=True)
    return dead_leaves(96, seed=1), dead_leaves(32, seed=2)
"""
"""A file of the user's. It says which pipeflow the worker has that loads the images."""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory) -> Path:
    """A virtual environment with the wheel, the dependencies, and the commands of torch and Ray."""
    folder = tmp_path_factory.mktemp("environment")
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    for name in ("torch", "ray"):
        for command in importlib.metadata.distribution(name).entry_points.select(group="console_scripts"):
            _, program = (Path(sys.executable).with_name(command.name)).read_text().split("\n", 1)
            (folder / "bin" / command.name).write_text(f"#!{python}\n{program}")
            (folder / "bin" / command.name).chmod(0o755)
    return folder


@pytest.fixture
def shell(environment, tmp_path):
    """`shell(command)` runs a command in an empty folder, as in a terminal in which the environment is active."""

    def run(command: str, code: int = 0) -> str:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        variables |= {"PATH": f"{environment}/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=variables, **output)
        assert done.returncode == code, f"{command}\n{done.stdout}"
        return done.stdout

    return run


def files_in(folder: str) -> set[str]:
    """Paths of the files below a folder of the repository, from the root on, without what Python has compiled."""
    paths = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def test_what_is_in_it(built):
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name == f"pipeflow_flows-{pipeflow.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"pipeflow_flows-{pipeflow.__version__}.dist-info"
    package = files_in("pipeflow") | {f"pipeflow/{name}" for name in files_in("configs")}
    recipes = {f"pipeflow/recipes/{Path(name).name}" for name in files_in("launch") if name.endswith(".sh")}
    assert {name for name in names if not name.startswith(info)} == package | recipes
    assert {"pipeflow/py.typed", f"{info}/licenses/LICENSE"} <= names
    with tarfile.open(source) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    # What somebody keeps in benchmarks/ or docs/ besides is theirs.
    assert set().union(*map(files_in, ("pipeflow", "configs", "launch", "tests"))) <= sources
    assert {"LICENSE", "README.md", "CITATION.cff", "Makefile", "docs/start.md", ".github/workflows/ci.yml"} <= sources
    parts = {part for name in sources for part in name.split("/")}
    assert not parts & {"runs", "build", "dist", ".venv", ".cache", "__pycache__", ".git"}


def test_it_is_the_wheel_that_is_imported(environment, shell):
    said = shell("python -c 'import sys, pipeflow; print(pipeflow.__file__, sys.path)'")
    assert said.startswith(f"{environment}/lib/") and f"'{ROOT}'" not in said
    assert shell("pipeflow --version").startswith(f"pipeflow {pipeflow.__version__}, torch ")


def test_a_run_of_one_s_own_images_is_looked_at_and_used(environment, shell, tmp_path):
    (tmp_path / "mine.py").write_text(IMAGES)
    torchrun = "torchrun --standalone --nproc_per_node=2 -m pipeflow.launch"
    said = shell(f"{torchrun} --data.name mine:images --parts.num 2 {SMALL}")
    assert "done: test " in said and f"images of {environment}/lib/" in said
    assert "the same to the last bit" in shell("pipeflow evaluate runs/quickstart --device cpu")
    assert "4 samples" in shell("pipeflow sample runs/quickstart --num 4 --device cpu")
    shell("pipeflow report runs/quickstart")
    said = shell("""python -c '
from pipeflow import load_flow
print(load_flow("runs/quickstart").sample(2, seed=0).shape)'""")
    assert said == "torch.Size([2, 3, 32, 32])\n"


def test_configurations_by_name(shell, tmp_path):
    names = [line.split()[0] for line in shell("pipeflow configs").splitlines()]
    assert {f"configs/{name}.yaml" for name in names} == files_in("configs")
    assert "60 alternate + 30 finetune" in shell("pipeflow plan --config cifar10/across3_lr1e-5")
    shell(f"pipeflow train --config two_moons --data.num_train 256 --data.num_test 64 {SMALL}")
    assert (tmp_path / "runs/two_moons/density.png").exists()
    assert "did you mean 'two_moons'?" in shell("pipeflow train --config two_mons", code=1)


def test_the_recipe_for_slurm_is_a_script(shell):
    shell("pipeflow recipe slurm > slurm.sh && bash -n slurm.sh && grep -q torchrun slurm.sh")


@pytest.mark.ray
def test_on_a_ray_cluster(environment, shell, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("PATH", f"{environment}/bin:{os.environ['PATH']}")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "mine.py").write_text(IMAGES)
    with closing(Cluster(environment / "bin" / "ray")) as cluster:
        submit = [environment / "bin" / "ray", "job", "submit", "--address", cluster.dashboard]
        program = [
            "python",
            "-m",
            "pipeflow.ray.train",
            "--storage",
            tmp_path / "shared",
            "--workers=2",
            "--parts.num=2",
        ]
        options = ["--data.name", "mine:images", *SMALL.split()]
        job = cluster.run([*submit, "--working-dir", tmp_path / "job", "--", *program, *options])
        said = finish(job)
    assert job.returncode == 0 and f"images of {environment}/lib/" in said, said
    assert (tmp_path / "shared" / "quickstart" / "summary.json").exists()


@pytest.mark.parametrize("module", ["train", "tune"])
def test_help_of_ray_s_doors_says_how_they_are_called(module, shell):
    said = shell(f"set -o pipefail; python -m pipeflow.ray.{module} --help | head -5")
    assert f"python -m pipeflow.ray.{module} " in said and "Traceback" not in said
