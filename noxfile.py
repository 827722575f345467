"""Everything that is checked, each in an environment that it makes itself: ``nox``.

``nox -s tests`` runs one session, ``nox --list`` shows all. Environments lie in ``.nox`` and are
made once: installing torch is most of a session's time. They are installed from ``locks/``
with ``--no-deps``; docs/install.md says why.
"""

import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
NEWEST = "transformers5"
OLDEST = "transformers4"
# One thread a process: the suite runs two processes, and some tests start ranks of their own.
TEST_ENV = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "true",
}
FAST = ("-m", "not slow and not gpu", "-n", "2", "--dist", "loadfile", "--durations", "10")
# Folders of tests that are the same whatever transformers is installed.
WITHOUT_TRANSFORMERS = (
    "architecture",
    "callbacks",
    "checkpoint",
    "data/convert",
    "drill",
    "faults",
    "launch",
    "loggers",
    "losses",
    "optim",
    "packaging",
    "plugin",
    "runs",
    "scaffold",
    "specs",
)

nox.options.default_venv_backend = "none"
nox.options.error_on_external_run = False


def torch_pin(lock):
    return next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))


def environment(session, name):
    """Make or update the environment of one lock; return its folder."""
    locks = [ROOT / "locks" / f"cpu-{name}.txt", ROOT / "locks" / "dev.txt"]
    folder = ROOT / ".nox" / name
    digest = hashlib.sha256()
    for path in (*locks, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    marker = folder / "installed"
    if marker.is_file() and marker.read_text() == digest.hexdigest():
        return folder
    if not folder.is_dir():
        session.run(sys.executable, "-m", "venv", str(folder))
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--progress-bar", "off", "-qq"]
    # torch first, with what its build needs: CPU or CUDA, as pip is set up to find it.
    session.run(*pip, torch_pin(locks[0]))
    session.run(*pip, "--no-deps", *(f"-r{lock}" for lock in locks), "-e", ".")
    marker.write_text(digest.hexdigest())
    return folder


def overlay(session, base, *, editables):
    """Make an empty environment that sees the packages of ``base``, to install into.

    Without ``editables`` the project itself is not seen, as it is installed in place there.
    """
    folder = ROOT / ".nox" / session.name
    shutil.rmtree(folder, ignore_errors=True)
    session.run(sys.executable, "-m", "venv", str(folder))
    [site] = folder.glob("lib/python3*/site-packages")
    [packages] = base.glob("lib/python3*/site-packages")
    line = f"import site; site.addsitedir({str(packages)!r})" if editables else str(packages)
    (site / "_base.pth").write_text(line + "\n")
    return folder


def with_plugins(session):
    """Make an environment in which the project and the plugins of this repository are installed."""
    folder = overlay(session, environment(session, NEWEST), editables=False)
    packages = sorted(str(path.parent) for path in (ROOT / "plugins").glob("*/pyproject.toml"))
    pip = ("python", "-m", "pip", "install", "-qq", "--no-deps")
    run(session, folder, *pip, "-e", ".", *packages)
    return folder


def run(session, folder, *command, **env):
    """Run a command of the environment ``folder``."""
    # Programs that an overlay lacks, such as torchrun, are those of the environment below it.
    places = [str(folder / "bin"), str(ROOT / ".nox" / NEWEST / "bin"), os.environ["PATH"]]
    path = os.pathsep.join(places)
    settings = {**TEST_ENV, **env, "PATH": path, "VIRTUAL_ENV": str(folder)}
    program = folder / "bin" / command[0]
    session.run(str(program) if program.exists() else command[0], *command[1:], env=settings)


@nox.session
def lint(session):
    """Style, and the layers of the architecture."""
    folder = environment(session, NEWEST)
    run(session, folder, "ruff", "check", ".")
    run(session, folder, "ruff", "format", "--check", ".")


@nox.session
def types(session):
    """Types, strictly."""
    run(session, environment(session, NEWEST), "mypy", "foundry_sdk")


@nox.session
def tests(session):
    """The fast suite; arguments after ``--`` go to pytest."""
    run(session, environment(session, NEWEST), "pytest", *(session.posargs or FAST))


@nox.session
def minimums(session):
    """What of the fast suite meets transformers, with the oldest that is supported."""
    elsewhere = [f"--ignore=tests/{folder}" for folder in WITHOUT_TRANSFORMERS]
    arguments = session.posargs or (*FAST, *elsewhere)
    run(session, environment(session, OLDEST), "pytest", *arguments)


@nox.session(default=os.environ.get("FOUNDRY_SKIP_SLOW") != "1")
def slow(session):
    """Tests that take minutes; not by default where FOUNDRY_SKIP_SLOW=1."""
    parallel = ("-n", "2", "--dist", "loadfile", "--durations", "10")
    arguments = session.posargs or ("-m", "slow and not gpu", *parallel)
    run(session, with_plugins(session), "python", "-m", "pytest", *arguments)


@nox.session
def plugins(session):
    """Plugin packages, installed for real, where a broken one is an error."""
    folder = overlay(session, environment(session, NEWEST), editables=True)
    packages = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
    if not packages:
        session.error("there is no plugin in plugins/")
    targets = [str(path) for path in packages]
    run(session, folder, "python", "-m", "pip", "install", "-qq", "--no-deps", *targets)
    strict = {"FOUNDRY_STRICT_PLUGINS": "1"}
    run(session, folder, "python", "-m", "foundry_sdk", "plugins", **strict)
    # What of the project itself needs a plugin.
    own = ROOT / "tests" / "quickstart" / "test_finetuning.py"
    run(session, folder, "python", "-m", "pytest", *targets, str(own), **strict)


@nox.session
def docs(session):
    """The documentation, into ``site/``; a warning is an error."""
    folder = environment(session, NEWEST)
    shutil.rmtree(ROOT / "site", ignore_errors=True)
    run(session, folder, "python", "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "site")


@nox.session
def examples(session):
    """Each example as its README says: every ``bash`` block, in a copy of the folder."""
    folder = with_plugins(session)
    for readme in sorted((ROOT / "examples").glob("*/README.md")):
        blocks = re.findall(r"^```bash\n(.*?)^```", readme.read_text(), re.MULTILINE | re.DOTALL)
        if not blocks:
            session.error(f"{readme}: no bash block to run")
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / readme.parent.name
            shutil.copytree(readme.parent, copy)
            for block in blocks:
                with session.chdir(copy):
                    run(session, folder, "bash", "-euxo", "pipefail", "-c", block)


@nox.session
def package(session):
    """Build sdist and wheel; the wheel, made of the sdist, works in a clean environment."""
    base = environment(session, NEWEST)
    folder = overlay(session, base, editables=False)
    pip = ("python", "-m", "pip")
    run(session, folder, *pip, "install", "-qq", "build")
    with tempfile.TemporaryDirectory() as out:
        run(session, folder, "python", "-m", "build", "--outdir", out)
        [wheel] = Path(out).glob("*.whl")
        run(session, folder, *pip, "install", "-qq", "--no-deps", str(wheel))
        with session.chdir(out):
            check = "from importlib.resources import files; import foundry_sdk, sys\n"
            check += "assert sys.prefix in foundry_sdk.__file__, foundry_sdk.__file__\n"
            check += "assert (files('foundry_sdk') / 'py.typed').is_file()"
            run(session, folder, "python", "-c", check)
            run(session, folder, "foundry", "--help")


@nox.session(default=False)
def gpu(session):
    """Tests that need a GPU, with the Python that nox runs in, where torch fits the device."""
    session.run(sys.executable, "-m", "pytest", "-m", "gpu", *session.posargs)


@nox.session(default=False, venv_backend="venv")
def locks(session):
    """Remake ``locks/*.txt`` from pyproject.toml; arguments go to ``uv pip compile``."""
    session.install("uv")
    newest = resolve(session, f"overrides-{NEWEST}.txt")
    tools = resolve(session, "overrides-dev.txt", newest, "--extra", "dev", "--extra", "docs")
    only_tools = [line for line in tools if line not in newest]
    oldest = resolve(session, f"overrides-{OLDEST}.txt", only_tools)
    in_both = names(newest) & names(oldest)
    files = {
        f"cpu-{NEWEST}.txt": newest,
        f"cpu-{OLDEST}.txt": oldest,
        "dev.txt": [line for line in tools if names([line]).isdisjoint(in_both)],
    }
    for name, lines in files.items():
        (ROOT / "locks" / name).write_text("\n".join(lines) + "\n")


# Left out of a lock: what an override excludes, other systems, and what torch brings itself.
LEFT_OUT = re.compile(r"sys_platform == '(never|win32|emscripten)'$|^(nvidia-|cuda-|triton==)")


def names(lines):
    return {line.partition("==")[0] for line in lines}


def resolve(session, overrides, constraints=(), *arguments):
    """Return the lines of one lock: exact versions, no addresses."""
    command = ["uv", "pip", "compile", "pyproject.toml", "--python-version", "3.11", "--universal"]
    command += ["--no-header", "--no-annotate", "--upgrade", "-q"]
    command += ["--override", str(ROOT / "locks" / overrides), *arguments, *session.posargs]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "constraints.txt"
        file.write_text("\n".join(constraints))
        lines = session.run(*command, "--constraint", str(file), silent=True).splitlines()
    return [line for line in lines if not LEFT_OUT.search(line)]
