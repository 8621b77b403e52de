"""The pages say what is true: their Python snippets run, their commands run and print what stands below them, their
config files and lines of data are read, links lead somewhere, and the map of the modules is whole.

A ``console`` block holds commands after ``$ `` and what they print; ``…`` stands for any lines, or any text within one.
Numbers of outputs are compared where `EXACT` says so. Every other command is parsed, options and all: those of `PARSED`
are never run, those of `SLOW` by ``make test-all``.
"""

from __future__ import annotations

import configparser
import importlib
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import click
import cv2
import numpy as np
import pytest

from flamingo_rt import __version__
from flamingo_rt.cli import cli
from flamingo_rt.evaluation.item_lines import ANSWERS
from flamingo_rt.evaluation.task_file import read_task
from flamingo_rt.loading import PACKAGED_BUNDLE
from flamingo_rt.training.config_file import read_options
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.options import DataOptions, FlamingoOptions, LanguageOptions, VisionOptions

ROOT = Path(__file__).parent.parent
OUTSIDE_DOCS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/peers/README.md")
PAGES = [*(ROOT / name for name in OUTSIDE_DOCS), *sorted((ROOT / "docs").glob("*.md"))]

# Commands that are parsed and not run, by a pattern of the whole command.
PARSED = {
    r"checkpoint\.pt|--model openflamingo-3b": "needs OpenFlamingo's weights",
    r"--ckpt checkpoint |--model bundle-mixed": "needs a checkpoint that is not here",
    r"encoder\.onnx|--vision encoder": "needs another project's encoder",
    r"^flamingo-rt train|--(ckpt|model) runs/": "trains for an hour",
    r"^flamingo-rt bench --preset": "writes gigabytes",
    r"--target tensorrt( |$)|--backend tensorrt": "needs a GPU",
    r"--target tensorrt-rtx": "needs TensorRT-RTX; tests/engines/tensorrt builds the same engines",
}
# Commands that take long: they run in the slow test alone.
SLOW = r"^flamingo-rt (export|bench|evaluate|verify)"
# Pages whose commands are another machine's.
ELSEWHERE = {"jetson.md": "a Jetson"}
# Python snippets that are compiled and not run.
COMPILED = {'backend="tensorrt"': "needs a GPU", "CAP_GSTREAMER": "needs a camera"}
# Commands of this project whose outputs are compared to the letter; elsewhere numbers may differ.
EXACT = r"^flamingo-rt (infer|describe)"
# Programs that are not this project's.
OTHERS = {"curl", "rsync", "sudo", "python3", "git", "cd", "torchrun"}
# Page whose config files are tasks of an evaluation, and whose lines are their items.
TASKS = ROOT / "docs" / "evaluation.md"
# Config files of the other pages, by the name in their first line.
STAGES = {"vision.toml": VisionOptions, "language.toml": LanguageOptions, "flamingo.toml": FlamingoOptions}


@dataclass(frozen=True)
class Command:
    """A line of a page after ``$ ``, and the lines that it prints there."""

    page: Path
    words: tuple[str, ...]
    printed: tuple[str, ...]

    @property
    def line(self) -> str:
        return shlex.join(self.words)


def fenced(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def steps(page: Path) -> Iterator[Command | str]:
    """Steps of a page from top to bottom: commands, and Python code."""
    for language, block in fenced(page):
        if language == "console":
            yield from commands(page, block)
        elif language == "python":
            yield block


def commands(page: Path, block: str) -> Iterator[Command]:
    entries: list[tuple[str, list[str]]] = []
    for line in block.replace("\\\n", "").splitlines():
        prompt = re.match(r"(?:\w+)?\$ (.*)", line)
        if prompt:
            entries.append((prompt[1], []))
        elif line.strip():
            assert entries, f"{page.name}: {line!r} stands before any command"
            entries[-1][1].append(line)
    for text, printed in entries:
        parts = [list(group) for both, group in groupby(shlex.split(text, comments=True), "&&".__eq__) if not both]
        for part in parts:
            yield Command(page, tuple(part), tuple(printed) if part is parts[-1] else ())


STEPS = {page: list(steps(page)) for page in PAGES}
ALL = [step for page in PAGES for step in STEPS[page] if isinstance(step, Command)]


def program(command: Command) -> str:
    return Path(command.words[0]).name


def named(of: str) -> list[Command]:
    return [command for command in ALL if program(command) == of]


def reason_not_to_run(command: Command) -> str | None:
    if command.page.name in ELSEWHERE:
        return f"for {ELSEWHERE[command.page.name]}"
    text = " ".join(command.words)
    return next((reason for pattern, reason in PARSED.items() if re.search(pattern, text)), None)


def ids(command: Command) -> str:
    return f"{command.page.stem}: {command.line}"


@pytest.mark.parametrize("command", named("flamingo-rt"), ids=ids)
def test_a_command_of_a_page_and_its_options_exist(command: Command) -> None:
    node, words = cli, list(command.words[1:])
    context = click.Context(cli, **cli.context_settings)  # a command keeps the names of its help option
    while isinstance(node, click.Group):
        name = words.pop(0)
        found = node.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        node = found
    context = node.make_context(" ".join(command.words[:2]), words, parent=context)
    context.close()


def test_every_command_of_a_page_is_a_known_one() -> None:
    known = {"flamingo-rt", "pip", "python", "make", "make.sh", *OTHERS}
    assert {program(command) for command in ALL} <= known


@pytest.mark.parametrize("command", [each for each in named("pip") if each.words[-1].startswith(".[")], ids=ids)
def test_a_pip_command_asks_for_extras_that_exist(command: Command) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = re.search(r"\.\[([\w,-]+)\]$", command.words[-1])
    assert extras is not None, command.line
    assert set(extras[1].split(",")) <= set(setup["options.extras_require"])


def test_other_pip_commands_are_those_beside_a_system_s_own_packages() -> None:
    """`test_system_packages.py` compares what they bring with the requirements."""
    others = [command for command in named("pip") if not command.words[-1].startswith(".[")]
    assert {command.page.name for command in others} == {"jetson.md"}
    assert others[0].words[1:] == ("install", "--no-deps", ".")


@pytest.mark.parametrize("command", named("make"), ids=ids)
def test_a_make_command_names_a_target(command: Command) -> None:
    assert re.search(rf"^{command.words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_targets_and_scripts_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"`make ([a-z-]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"
        if page.name == "CHANGELOG.md":  # it names what is gone too
            continue
        folders = "benchmarks|recipes|tests|docs|examples|flamingo_rt|export|engines|models"
        for path in re.findall(rf"`((?:{folders})/[\w./-]+)`(?!\s+of commit)", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
        for path in re.findall(r"`([\w/]+\.py)`(?!\s+of commit)", text):
            file = path.rpartition("/")[2]
            assert any(each.as_posix().endswith(f"/{path}") for each in files_called(file)), f"{page.name}: {path}"


def files_called(name: str) -> list[Path]:
    tops = ("flamingo_rt", "export", "engines", "benchmarks", "recipes", "tests", "examples")
    return [file for top in tops for file in (ROOT / top).rglob(name) if ".venv" not in file.parts]


def blocks(language: str, tasks: bool = False) -> list[str]:
    """The text of every block of a language, of the page of tasks or of all others."""
    return [text for page in PAGES if (page == TASKS) == tasks for name, text in fenced(page) if name == language]


@pytest.mark.parametrize("text", blocks("toml"), ids=lambda text: text.splitlines()[0])
def test_a_config_file_of_a_page_is_read(text: str, tmp_path: Path) -> None:
    name = text.splitlines()[0].removeprefix("# ")
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    assert read_options(STAGES[name], file, {}).data


@pytest.mark.parametrize("text", blocks("json"), ids=lambda text: text[:20])
def test_lines_of_data_of_a_page_are_samples(text: str, tmp_path: Path) -> None:
    touch_named(tmp_path, text)
    (tmp_path / "lines.jsonl").write_text(text, encoding="utf-8")
    source = open_source(DataOptions(str(tmp_path / "lines.jsonl")))
    assert len(source) == len(text.splitlines())
    assert all(source.sample(index).segments for index in range(len(source)))


def touch_named(folder: Path, text: str) -> None:
    """Make the pictures and clips that lines of data name, as empty files."""
    for name in re.findall(r'"([\w/]+\.(?:jpg|mp4))"', text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def kind_of_items(text: str) -> str:
    """The kind of task that lines of items are of."""
    return next(kind for kind, keys in ANSWERS.items() if any(f'"{key}": ' in text for key in keys))


@pytest.mark.parametrize("text", blocks("json", tasks=True), ids=lambda text: text[:40])
def test_lines_of_the_page_of_tasks_are_items(text: str, tmp_path: Path) -> None:
    touch_named(tmp_path, text)
    (tmp_path / "items.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "task.toml").write_text(
        f'kind = "{kind_of_items(text)}"\nitems = "items.jsonl"\nsupport = "items.jsonl"\n', encoding="utf-8")
    assert len(read_task(tmp_path / "task.toml").items) == len(text.splitlines())


@pytest.mark.parametrize("text", blocks("toml", tasks=True), ids=lambda text: text.splitlines()[0])
def test_a_task_of_a_page_is_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / text.splitlines()[0].removeprefix("# ")
    file.write_text(text, encoding="utf-8")
    (lines,) = (lines for lines in blocks("json", tasks=True) if f'kind = "{kind_of_items(lines)}"' in text)
    for name in re.findall(r'"([\w/]+\.jsonl)"', text):
        (tmp_path / name).write_text(lines, encoding="utf-8")
    touch_named(tmp_path / "pictures", lines)
    assert read_task(file).name == file.stem


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "tasks").glob("*.toml")), ids=lambda file: file.stem)
def test_a_task_of_the_examples_is_whole(file: Path) -> None:
    task = read_task(file)
    pictures = [item.file for item in (*task.items, *task.support)]
    assert task.items
    assert not task.missing
    assert all(picture.is_file() for picture in pictures)
    if file.stem == "words":
        assert len(set(pictures)) == len(pictures)  # no shot is asked about
        assert sorted(Counter(item.answers for item in task.support).values()) == [4, 4, 4, 4]
        assert sorted(Counter(item.answers for item in task.items).values()) == [3, 3, 3, 3]
    else:
        assert {item.file for item in task.items} == set((ROOT / "examples" / "scenes").glob("*.png"))


def scripts_of(page: Path) -> list[str]:
    """Every ``python FILE.py …`` and ``python -m benchmarks.NAME …`` of a page, in blocks and in the text."""
    text = re.sub(r"\\?\n", " ", page.read_text(encoding="utf-8"))
    found = re.findall(r"python (?:-m benchmarks(?:\.\w+)+|(?:\w+/)+\w+\.py)(?: +[^`$|#]*)?", text)
    return [line for line in found if not line.startswith("python -m benchmarks.NAME")]  # any of them


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_scripts_of_a_page_exist_with_their_options(page: Path) -> None:
    for line in scripts_of(page):
        words = line.split()
        file = ROOT / (words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1])
        assert file.is_file(), f"{page.name}: {line}"
        shared = ROOT.glob("benchmarks/*/*.py") if "benchmarks" in file.parts else ()
        told = "".join(each.read_text(encoding="utf-8") for each in (file, *shared))
        for option in re.findall(r"(?<= )--[a-z-]+", line):
            assert f'"{option}"' in told, f"{page.name}: {option} of {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings}, target


@pytest.fixture(scope="module")
def sample_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that pages name: pictures, a clip, a bundle, the small checkpoint of the repository."""
    folder = tmp_path_factory.mktemp("pages")
    scenes = ROOT / "examples" / "scenes"
    for name, scene in (("a.png", "a.png"), ("b.png", "b.png"), ("photo.png", "c.png"), ("photo.jpg", "c.png")):
        shutil.copy(scenes / scene, folder / name)
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(ROOT / "models", folder / "models")
    shutil.copytree(PACKAGED_BUNDLE, folder / "bundle")
    writer = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 4.0, (64, 64))
    rng = np.random.default_rng(0)
    for _ in range(8):
        writer.write(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    writer.release()
    return folder


@pytest.fixture
def in_sample_files(sample_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sample files, as the working folder."""
    folder = tmp_path / "work"
    shutil.copytree(sample_files, folder)
    monkeypatch.chdir(folder)
    return folder


def runs(step: Command | str, slow: bool = True) -> bool:
    """Whether a step of a page is run here; ``slow``: by the slow test."""
    if isinstance(step, str):
        return not any(mark in step for mark in COMPILED)
    if program(step) != "flamingo-rt" or reason_not_to_run(step) is not None:
        return False
    return slow or not re.search(SLOW, " ".join(step.words))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(runs(step, slow=False) for step in STEPS[page])], ids=lambda page: page.stem
)
def test_a_page_runs_from_top_to_bottom_and_prints_what_it_says(
    page: Path, in_sample_files: Path, run_command: Callable[[Command], str]
) -> None:
    follow(page, in_sample_files, run_command, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(runs(step) and not runs(step, slow=False) for step in STEPS[page])],
    ids=lambda page: page.stem,
)
def test_a_page_runs_with_what_takes_long(
    page: Path, in_sample_files: Path, run_command: Callable[[Command], str]
) -> None:
    follow(page, in_sample_files, run_command, slow=True)


def follow(page: Path, folder: Path, run_command: Callable[[Command], str], slow: bool) -> None:
    """Run what a page says, in its order and in one namespace."""
    names: dict[str, object] = {}
    for step in STEPS[page]:
        if isinstance(step, str):
            code = compile(step, str(page), "exec")
            if runs(step, slow):
                exec(code, names)
        elif runs(step, slow):
            if "--out bundle" in step.line:  # the page makes its own
                shutil.rmtree(folder / step.words[step.words.index("--out") + 1], ignore_errors=True)
            assert_printed(step, run_command(step))


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[Command], str]:
    """Run a command line in this process; it must succeed. What it prints comes back."""

    def call(command: Command) -> str:
        monkeypatch.setattr(sys, "argv", list(command.words))
        capfd.readouterr()
        code: object = 0
        try:
            importlib.import_module("flamingo_rt.cli").main()
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        assert code in (0, None), f"{command.line}\n{out}{err}"
        return out

    return call


def assert_printed(command: Command, out: str) -> None:
    """Compare what a command printed with what the page says; a page that shows nothing says nothing."""
    if not command.printed:
        return
    line = command.line
    shown, found = ("\n".join(" ".join(each.split()) for each in text) for text in (command.printed, out.splitlines()))
    if not re.search(EXACT, line):
        shown, found = (re.sub(r"\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "0", text) for text in (shown, found))
    pattern = ".*".join(re.escape(part) for part in shown.split("…"))
    assert re.fullmatch(pattern, found, re.DOTALL), f"{command.page.name}: {line}\n{out}"


def test_numbers_of_an_output_may_differ_where_they_are_measured_and_nowhere_else() -> None:
    measured = Command(ROOT / "README.md", ("flamingo-rt", "bench"), ("vision  3.2 ms", "…"))
    assert_printed(measured, "vision   14 ms\nresampler 2 ms\n")
    with pytest.raises(AssertionError):
        assert_printed(measured, "decode 14 ms\n")
    exact = Command(ROOT / "README.md", ("flamingo-rt", "infer"), ("yes  51.2% …",))
    assert_printed(exact, "yes  51.2%  log-probability -1\n")
    with pytest.raises(AssertionError):
        assert_printed(exact, "yes  51.3%  log-probability -1\n")


def mapped() -> Iterator[tuple[str, list[str]]]:
    """The folders of the map in CONTRIBUTING, each with the modules that are named below it."""
    (block,) = (text for _, text in fenced(ROOT / "CONTRIBUTING.md") if text.startswith("flamingo_rt/"))
    for part in re.split(r"^(?=\S)", block, flags=re.MULTILINE)[1:]:
        folder = part.split(maxsplit=1)[0].rstrip(",")
        yield folder, re.findall(r"[\w]+\.py", part)


def test_the_map_names_every_module_and_nothing_else() -> None:
    folders = dict(mapped())
    for folder, names in folders.items():
        assert (ROOT / folder).is_dir(), folder
        there = {file.name for file in (ROOT / folder).glob("*.py")} - {"__init__.py"}
        if folder.split("/")[0] in ("flamingo_rt", "export", "engines") and names:
            assert set(names) == there, f"{folder}: {set(names) ^ there}"
    for top in ("flamingo_rt", "export", "engines"):
        for file in (ROOT / top).rglob("*.py"):
            folder = f"{file.parent.relative_to(ROOT)}/"
            assert folder in folders, f"{folder} is not in CONTRIBUTING's map"


def test_the_version_is_in_one_place_and_the_changelog_knows_it() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert setup["metadata"]["version"] == "attr: flamingo_rt.__version__"
    assert f"## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
