"""Write the reference before Sphinx reads it: a page per stage, per family and wing, and the commands.

The pages show the public names, which `docs/public-names.toml` lists. A stage that moves needs no line here.
The pages are written beside the others, into files that git ignores.
"""

import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import re
import tomllib
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import docstrings
from markdown_text import (
    escape_cell,
    parse_attributes,
    parse_summary,
    render_examples,
    render_sections,
    render_summary,
)
from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

import fpatch
from fpatch import Range, Resource, compose

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
FAMILIES = ("create", "implant", "compose", "infer", "defend", "losses", "metrics", "viz")
WITH_STAGES = (*FAMILIES, "graph")
"""The wings with stages; `graph` has modules with public names too, and so a page of its own."""
Definition = type(compose.exposure)
Loader = type(fpatch.data.image_file)
COMMANDS = (
    *("demo", "describe", "doctor", "train", "resume", "evaluate", "replay", "grid", "transfer", "matrix"),
    *("score", "analyze", "sweep", "harden"),
)


PUBLIC = {
    module: sorted(names.split())
    for module, names in tomllib.loads((DOCS / "public-names.toml").read_text()).items()
}
"""The public names by module."""


# -- the public names


def find_names(module: ModuleType) -> list[str]:
    """The public names of a module."""
    return [name for name in PUBLIC[module.__name__] if not name.startswith("_")]


def find_stages(family: str) -> dict[str, Any]:
    """The definitions of a family, by their names in it."""
    module = importlib.import_module(f"fpatch.{family}")
    found = {name: getattr(module, name) for name in find_names(module)}
    return {name: value for name, value in found.items() if isinstance(value, Definition)}


def find_wings() -> list[str]:
    """The wings with public names, the families first."""
    wings = {module.split(".")[1] for module in PUBLIC if module != "fpatch"}
    return [*FAMILIES, *sorted(wings - set(FAMILIES))]


def find_modules(wing: str) -> list[ModuleType]:
    """The modules of a wing that have public names."""
    full = f"fpatch.{wing}"
    return [importlib.import_module(name) for name in PUBLIC if name == full or name.startswith(f"{full}.")]


def find_wing(value: Any) -> str:
    """The wing in which a function or a class is made."""
    module = getattr(value, "__module__", "")
    return module.split(".")[1] if module.startswith("fpatch.") else "core"


def group_stages(stages: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Stages by the package that they stand in below their family."""
    groups: dict[str, dict[str, Any]] = {}
    for name, definition in stages.items():
        groups.setdefault(definition.module.rpartition(".")[0], {})[name] = definition
    return dict(sorted(groups.items(), key=lambda group: (group[0].count(".") == 1, group[0])))


def flags(value: Any) -> dict[str, bool]:
    """What is true or false of a definition, at any depth."""
    found: dict[str, bool] = {}
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        if isinstance(part, bool):
            found[field.name] = part
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            found |= flags(part)
    return found


# -- a stage


def make_stage_page(family: str, name: str, definition: Any) -> Iterator[str]:
    """All that a stage says of itself."""
    module = importlib.import_module(definition.module)
    about, doc = inspect.getdoc(module) or "", inspect.getdoc(definition.config) or ""
    yield from (f"# {family}.{name}", "", render_summary(about), "")
    yield from (*make_picture(family, name), "")
    yield from (
        "```{py:function} " + f"fpatch.{family}.{name}({show_signature(definition.config)})",
        "```",
        "",
    )
    fields = dataclasses.fields(definition.config)
    if fields:
        said_in_table = len(fields) == 1 and not parse_attributes(doc)
        yield from ("## Settings", "", "" if said_in_table else render_summary(doc), "")
        yield from (*make_settings(definition.config, doc), "")
    yield from ("## Values", "", *make_values(definition), "")
    for text in (about, doc):
        yield from render_sections(text)
    examples = [line for text in (about, doc) for line in render_examples(text)]
    yield from ("## Example", "", *examples) if examples else ()
    yield from ("## In a study", "", *make_section(family, name, definition.config), "")
    file = Path(inspect.getfile(module)).relative_to(ROOT)
    yield from ("## Source", "", f"<details><summary><code>{file}</code></summary>", "")
    yield from (f"```{{literalinclude}} /../{file}", ":language: python", "```", "", "</details>")


def make_picture(family: str, name: str) -> Iterator[str]:
    """What the stage does, by `docs/gallery.py`."""
    picture = f"images/stages/{family}-{name}.jpg"
    if (DOCS / picture).exists():
        yield from (f":::{{image}} /{picture}", f":alt: What {family}.{name} does to an example", ":::")


def make_settings(config: type, doc: str) -> Iterator[str]:
    """A row for each setting of a stage."""
    yield from make_rows(dataclasses.fields(config), typing.get_type_hints(config), doc)


def make_rows(fields: Sequence[Any], hints: dict[str, Any], doc: str) -> Iterator[str]:
    """A row for each setting, explained by the attributes of a docstring or by all of a short one."""
    texts = parse_attributes(doc)
    yield from ("```{table}", ":class: settings", "")
    yield from ("| setting | type | default | meaning |", "|---|---|---|---|")
    for field in fields:
        default = "*needed*" if is_needed(field) else f"`{show_default(field)}`"
        meaning = texts.get(
            field.name, "" if texts or len(fields) > 1 else " ".join(parse_summary(doc).split())
        )
        kind = show_type(hints[field.name]).replace("|", "\\|")
        yield f"| `{field.name}` | `{kind}` | {default} | {escape_cell(meaning)} |"
    yield "```"


def make_values(definition: Any) -> Iterator[str]:
    """What a stage reads, writes and draws, and what it cannot do."""
    able = flags(definition)
    reads = [*definition.reads, *(n for n in definition.optional if n not in definition.reads)]
    shown = [f"`{n}`" + (" if it is there" if n in definition.optional else "") for n in reads]
    yield from ("```{table}", ":class: values", "", "| | |", "|---|---|")
    yield f"| reads | {', '.join(shown) or 'the patch parameters'} |"
    yield f"| writes | {', '.join(f'`{n}`' for n in definition.writes) or 'nothing per row'} |"
    yield f"| samples | {show_sample(definition)} |"
    cannot = {
        "vmap": "run under `torch.func.vmap`",
        "gradient": "pass a gradient to its input",
        "compile": "be compiled whole",
    }
    unable = [text for flag, text in cannot.items() if not able.get(flag, True)]
    yield f"| cannot | {', '.join(unable) or '-'} |"
    marks = [n for n in ("geometric", "pixelwise", "of_patch") if able.get(n)]
    if surrogate := definition.traits.surrogate:
        yield f"| gradient | {surrogate} |"
    if definition.role != "stage":
        yield f"| role | {definition.role} |"
    if marks:
        yield f"| marks | {', '.join(f'`{n}`' for n in marks)} |"
    yield "```"


def show_sample(definition: Any) -> str:
    """The names and shapes of what is drawn."""
    declared = typing.get_type_hints(definition.sample).get("return")
    hints = typing.get_type_hints(declared) if declared else {}
    drawn = [f"`{n}` {show_shape(hints[n])}" if n in hints else f"`{n}`" for n in definition.fields]
    if not drawn:
        return "as its settings say" if definition.declare and hints else "nothing"
    about = " ".join((declared.__doc__ or "").split())
    return escape_cell(f"{', '.join(drawn)}. {about}")


def show_shape(hint: Any) -> str:
    """Of `Float[Tensor, "b k"]`: float `[b, k]`."""
    return f"{hint.dtype.__name__.lower()} `[{', '.join(hint.dim_str.split())}]`"


def make_section(family: str, name: str, config: type) -> Iterator[str]:
    """The lines of a study that name the stage, with the defaults that are easily written."""
    fields = dataclasses.fields(config)
    yield from ("```toml", f"[pipeline.{name}]", f'stage = "{family}.{name}"')
    needed = [f.name for f in fields if is_needed(f)]
    if needed:
        yield f"# and {', '.join(needed)}"
    else:
        try:
            config()
        except ValueError as error:  # of settings that have defaults, one must be given
            yield f"# alone an error: {error}"
    for field in fields:
        value = None if is_needed(field) else get_default(field)
        if isinstance(value, bool | int | float | str | Range) and (text := show_toml(value)):
            yield f"{field.name} = {text}"
    yield "```"


def is_needed(field: Any) -> bool:
    """Whether a setting has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def get_default(field: Any) -> Any:
    """The default of a setting."""
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


def show_toml(value: Any) -> str:
    """A value as a study writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return f"[{', '.join(map(show_toml, value))}]" if isinstance(value, Range) else repr(value)


def show_number(value: float) -> str:
    """At most four digits."""
    return f"{value:.4g}" if isinstance(value, float) and len(repr(value)) > 8 else repr(value)


def show_default(field: Any) -> str:
    """The default of a setting; long ones by their length."""
    value = get_default(field)
    if isinstance(value, Range):
        return f"({', '.join(map(show_number, value))})"
    if isinstance(value, tuple):
        return str(value) if len(value) <= 4 else f"({len(value)} values)"
    if isinstance(value, float):
        return show_number(value)
    return str(value) if isinstance(value, Resource) else repr(value)


def show_signature(config: type) -> str:
    """The settings of a stage, with their defaults."""
    shown = (
        f.name if is_needed(f) else f"{f.name}={re.sub(r'[<>]', '', show_default(f))}"
        for f in dataclasses.fields(config)
    )
    return ", ".join(shown)


def show_type(hint: Any) -> str:
    """An annotation without the modules of its names."""
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    text = re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text)
    text = re.sub(r"Optional\[(.*)\]", r"\1 | None", text)
    return re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace(", ", " | "), text)


# -- families and wings


def make_family_page(family: str) -> Iterator[str]:
    """The stages of a family in tables, and its other names."""
    module = importlib.import_module(f"fpatch.{family}")
    stages = find_stages(family)
    yield from (f"(stages-{family})=", f"# {family}", "", render_summary(inspect.getdoc(module) or ""), "")
    yield from (f"Pictures of all are in the [gallery](#gallery-{family}).", "")
    yield from (f"```{{py:module}} fpatch.{family}", "```", "")
    groups = group_stages(stages)
    for package, members in groups.items():
        if package == module.__name__ and len(groups) > 1:
            yield from ("## Others", "")
        elif package != module.__name__:
            about = inspect.getdoc(importlib.import_module(package)) or ""
            yield from (f"## {package.rpartition('.')[2].capitalize()}", "", render_summary(about), "")
        yield from ("| stage | what it does |", "|---|---|")
        yield from (f"| [`{name}`]({family}.{name}.md) | {first_line(d)} |" for name, d in members.items())
        yield ""
    yield from ("```{toctree}", ":hidden:", "", *(f"{name} <{family}.{name}>" for name in stages), "```", "")
    others = [n for n in find_names(module) if n not in stages]
    if others:
        yield from ("## Functions", "", "```{eval-rst}", *make_objects(module, others), "```")


def first_line(definition: Any) -> str:
    """The first sentence of the module of a stage."""
    about = inspect.getdoc(importlib.import_module(definition.module)) or ""
    return escape_cell(about.split("\n\n")[0].replace("\n", " "))


def make_gallery() -> Iterator[str]:
    """All pictures, each leading to its stage."""
    yield from ("# Gallery", "", "Every stage, shown on a photograph that scikit-learn ships.", "")
    for family in WITH_STAGES:
        yield from (f"(gallery-{family})=", f"## [{family}](#stages-{family})", "")
        for name, definition in find_stages(family).items():
            yield from (f"[**{family}.{name}**]({family}.{name}.md) {first_line(definition)}", "")
            yield from (*make_picture(family, name), "")


def make_face_page() -> Iterator[str]:
    """The names of the package itself, by the wing that makes them."""
    yield from ("fpatch", "======", "", ".. automodule:: fpatch", "   :no-members:", "")
    names = [name for name in find_names(fpatch) if not inspect.ismodule(getattr(fpatch, name))]
    by_wing: dict[str, list[str]] = {}
    for name in names:
        by_wing.setdefault(find_wing(getattr(fpatch, name)), []).append(name)
    for wing, members in sorted(by_wing.items()):
        about = get_summary(importlib.import_module(f"fpatch.{wing}"))
        yield from (wing, "-" * len(wing), "", docstrings.escape(about), "")
        yield from make_list(fpatch, members)
        yield from make_objects(fpatch, members)


def make_wing_page(wing: str) -> Iterator[str]:
    """The public names of a wing, by module."""
    full = f"fpatch.{wing}"
    yield from (full, "=" * len(full), "")
    modules = [m for m in find_modules(wing) if m.__name__ != full or wing not in WITH_STAGES]
    if modules[0].__name__ != full:
        yield from (docstrings.escape(get_summary(importlib.import_module(full))), "")
    for module in modules:
        if module.__name__ != full:
            yield from (module.__name__, "-" * len(module.__name__), "")
        yield from (f".. automodule:: {module.__name__}", "   :no-members:", "")
        yield from make_list(module, find_names(module))
        yield from make_objects(module, find_names(module))


def make_list(module: ModuleType, names: Iterable[str]) -> Iterator[str]:
    """A table of names, each with its first sentence."""
    yield from (".. list-table::", "   :widths: 30 70", "")
    for name in names:
        value, full = getattr(module, name), module.__name__
        at = "fpatch" if getattr(fpatch, name, None) is value else full
        yield from (
            f"   * - :py:obj:`{name} <{at}.{name}>`",
            f"     - {docstrings.escape(get_summary(value))}",
        )
    yield ""


def get_summary(value: Any) -> str:
    """The first paragraph of a docstring; a plain value has none of its own."""
    doc = inspect.getdoc(value.load if isinstance(value, Loader) else value) or ""
    is_documented = inspect.ismodule(value) or callable(value)
    return doc.split("\n\n")[0].replace("\n", " ") if is_documented else ""


def make_objects(module: ModuleType, names: Iterable[str]) -> Iterator[str]:
    """Directives for functions and classes; what the face has too is only named."""
    for name in names:
        value, full = getattr(module, name), f"{module.__name__}.{name}"
        if module is not fpatch and getattr(fpatch, name, None) is value:
            continue
        if typing.get_origin(value) is not None:  # another name of a type
            yield from (f".. autodata:: {full}", "   :no-value:", "")
        elif isinstance(value, Loader):
            yield from make_loader(full, value)
        elif inspect.isclass(value):
            fields = ", ".join(getattr(value, "_fields", ()))
            yield from (f".. autoclass:: {full}", *([f"   :exclude-members: {fields}"] if fields else []), "")
        elif callable(value):
            yield from (f".. autofunction:: {full}", "")
        else:
            yield from (f".. autodata:: {full}", "   :no-value:", "")


def make_loader(full: str, loader: Any) -> Iterator[str]:
    """What a loader makes, by the function that it registers."""
    parameters = str(inspect.signature(loader.load).replace(return_annotation=inspect.Signature.empty))
    doc = GoogleDocstring(
        docstrings.convert((inspect.getdoc(loader.load) or "").splitlines()), what="function"
    )
    module, _, name = full.rpartition(".")
    yield from (
        f".. py:function:: {name}{re.sub(r'(?:[a-zA-Z_]+[.])+', '', parameters)}",
        f"   :module: {module}",
        "",
    )
    yield from (f"   {line}".rstrip() for line in str(doc).splitlines())
    yield from ("", f'   A loader: ``loader = "{loader.name}"`` in a study.', "")


def make_index(wings: list[str]) -> Iterator[str]:
    """The wings in a table."""
    yield from ("# Python API", "", "Every public name, by the module that it is imported from.", "")
    yield from ("| module | |", "|---|---|")
    for wing in ["", *wings]:
        full = f"fpatch.{wing}" if wing else "fpatch"
        page = f"#stages-{wing}" if wing in FAMILIES else f"{full}.rst"
        about = get_summary(importlib.import_module(full))
        yield f"| [`{full}`]({page}) | {escape_cell(about)} |"
    entries = [f"{w} </reference/stages/{w}>" if w in FAMILIES else f"{w} <fpatch.{w}>" for w in wings]
    pages = [e for e in entries if "/stages/" not in e]
    yield from ("", "```{toctree}", ":hidden:", "", "fpatch <fpatch>", *pages, "```")


# -- settings and the command line


def make_study_settings() -> Iterator[str]:
    """The sections of a study, and those that a sweep adds, from the classes that they are read into."""
    yield from ("# Settings", "", "Every setting of a [study file](study-files.md), by section.", "")
    hints = typing.get_type_hints(fpatch.Study)
    sections = {n: t for n, t in hints.items() if dataclasses.is_dataclass(t) and n != "pipeline"}
    sections |= {"sweep": fpatch.tune.Sweep, "sweep.halving": fpatch.tune.Halving}
    sections |= {"sweep.population": fpatch.tune.Population}
    top = [f for f in dataclasses.fields(fpatch.Study) if f.name not in {*sections, "pipeline"}]
    yield from ("## Above the sections", "", *make_rows(top, hints, inspect.getdoc(fpatch.Study) or ""), "")
    for name, section in sections.items():
        doc = inspect.getdoc(section) or ""
        yield from (f"(section-{name})=", f"## \\[{name}\\]", "", render_summary(doc), "")
        yield from (*make_rows(dataclasses.fields(section), typing.get_type_hints(section), doc), "")


def make_commands() -> Iterator[str]:
    """What every command says of itself when asked for help."""
    yield from ("# Commands", "", "```text", show_help(), "```", "")
    for command in COMMANDS:
        yield from (f"## fpatch {command}", "", "```text", show_help(command), "```", "")


def show_help(*words: str) -> str:
    """The answer to `--help`."""
    from fpatch.cli.main import main

    answer = io.StringIO()
    with contextlib.redirect_stdout(answer), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return answer.getvalue().strip()


# -- the files


def make_pages() -> dict[Path, str]:
    """Every page that the code writes."""
    pages: dict[Path, Iterator[str]] = {}
    stages, api = DOCS / "reference" / "stages", DOCS / "reference" / "api"
    for family in WITH_STAGES:
        pages[stages / f"{family}.md"] = make_family_page(family)
        for name, definition in find_stages(family).items():
            pages[stages / f"{family}.{name}.md"] = make_stage_page(family, name, definition)
    pages[stages / "gallery.md"] = make_gallery()
    wings = find_wings()
    pages[api / "fpatch.rst"] = make_face_page()
    for wing in [wing for wing in wings if wing not in FAMILIES]:
        pages[api / f"fpatch.{wing}.rst"] = make_wing_page(wing)
    pages[api / "index.md"] = make_index(wings)
    pages[DOCS / "reference" / "commands.md"] = make_commands()
    pages[DOCS / "reference" / "settings.md"] = make_study_settings()
    return {path: "\n".join(lines).rstrip() + "\n" for path, lines in pages.items()}


def write_pages(app: Sphinx) -> None:
    """Write the pages that changed, and remove those of what is gone."""
    os.environ["COLUMNS"] = "92"  # of what commands print
    pages = make_pages()
    for folder in {path.parent for path in pages} - {DOCS / "reference"}:
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path not in pages and path.name != "index.md":
                path.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Join the build."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
