"""What the analysis of a table finds, on tables whose truth is known."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from safetensors.torch import save_file

from fpatch import analysis, viz
from fpatch.analysis import importance
from fpatch.log import Records


def make_table(rng, photographs=60, draws=3, **columns):
    """A table as an evaluation leaves it, with sampled values that matter and some that do not."""
    n = photographs * draws
    return {
        "image_id": np.repeat(np.arange(photographs) * 7, draws),
        "draw": np.tile(np.arange(draws), photographs),
        "path": np.repeat([f"photographs/{i:03d}.png" for i in range(photographs)], draws),
        "photograph": np.full(n, "0" * 64),
        "key/0": rng.integers(0, 2**32, n),
        "key/1": rng.integers(0, 2**32, n),
        "sample/exposure/stops": rng.uniform(-1, 1, n).astype(np.float32),
        "sample/tilt/angle_deg": rng.uniform(-30, 30, n).astype(np.float32),
        "sample/tilt/on": rng.random(n) < 0.5,
        "sample/shadow/pattern": rng.integers(0, 4, n),
        "sample/noise/std_frac": rng.uniform(0, 0.1, n).astype(np.float32),
        "sample/noise/key/0": rng.integers(0, 2**32, n),
        "sample/noise/key/1": rng.integers(0, 2**32, n),
        "sample/implant/opacity/0": np.ones(n, np.float32),
        **columns,
    }


def plant(table, rng):
    """A loss that two numbers and one category decide, and a hit at its median."""
    loss = (
        1.5 * table["sample/exposure/stops"]
        + np.abs(table["sample/tilt/angle_deg"]) / 15
        + np.array([0.0, 2.0, 0.0, -1.0])[table["sample/shadow/pattern"]]
        + rng.normal(0, 0.2, len(table["image_id"]))
    )
    table["loss/patch"] = loss.astype(np.float32)
    table["found/patch"] = loss > np.median(loss)
    return table


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def planted(rng):
    return plant(make_table(rng), rng)


PLANTED = {"sample/exposure/stops", "sample/tilt/angle_deg", "sample/shadow/pattern"}
NOISE = {"sample/tilt/on", "sample/noise/std_frac"}


# --- permutation importance -------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "least"), [("loss/patch", 0.6), ("found/patch", 0.4)])
def test_planted_effects_are_found(planted, metric, least):
    result = analysis.permutation_importance(planted, metric, num_repeats=5)
    assert [c.mean for c in result.columns] == sorted((c.mean for c in result.columns), reverse=True)
    assert {c.column for c in result.columns[:3]} == PLANTED
    assert {c.column for c in result.columns[3:]} == NOISE
    assert all(c.mean > 0.05 and c.mean > 3 * c.std for c in result.columns[:3])
    assert all(abs(c.mean) < 0.03 for c in result.columns[3:])
    assert 1 > result.score.high > result.score.value > result.score.low > least
    assert (result.score.count, result.score.photographs) == (180, 60)
    assert result.constant == ("sample/implant/opacity/0",)
    assert (result.metric, result.dropped, result.warnings) == (metric, 0, ())


@pytest.mark.parametrize("seed", range(4))
def test_a_metric_that_depends_on_nothing_is_said_to(seed):
    rng = np.random.default_rng(seed)
    table = make_table(rng)
    table["loss/patch"] = rng.normal(size=180).astype(np.float32)
    result = analysis.permutation_importance(table, "loss/patch", num_repeats=2, seed=seed)
    assert -0.3 < result.score.value < 0.1
    assert "do not predict loss/patch" in result.warnings[0]
    assert "warning: the sampled values do not predict loss/patch" in str(result)


def test_the_score_and_the_importances_are_those_of_the_definition(planted):
    """One less the squared error over that of the mean, and its rise when a column is shuffled."""
    from sklearn.model_selection import GroupKFold

    result = analysis.permutation_importance(planted, "loss/patch", num_repeats=10)
    y, groups = planted["loss/patch"].astype(float), planted["image_id"]
    names = [c.column for c in result.columns]
    pattern = names.index("sample/shadow/pattern")
    x = np.stack([planted[n].astype(float) for n in names], axis=1)
    errors, rises, of_mean = [], np.zeros(len(names)), []
    rng = np.random.default_rng(1)
    for learned, held in GroupKFold(5, shuffle=True, random_state=0).split(x, y, groups):
        forest = importance._make_forest([pattern], 3).fit(x[learned], y[learned])
        of_mean.append((y[held] - y[learned].mean()) ** 2)
        errors.append((y[held] - forest.predict(x[held])) ** 2)
        for i in range(len(names)):
            other = np.tile(x[held], (50, 1))
            other[:, i] = rng.permutation(other[:, i])
            rises[i] += ((np.tile(y[held], 50) - forest.predict(other)) ** 2).sum() / 50 - errors[-1].sum()
    total = np.concatenate(of_mean).sum()
    assert result.score.value == pytest.approx(1 - np.concatenate(errors).sum() / total, abs=0.03)
    assert [c.mean for c in result.columns] == pytest.approx((rises / total).tolist(), rel=0.15, abs=0.02)


def test_rows_of_a_photograph_never_stand_on_both_sides(rng):
    """A value that identifies the photograph explains its loss perfectly, but not that of another one."""
    table = make_table(rng, photographs=30, draws=6)
    lucky = rng.normal(size=30)
    table["sample/exposure/stops"] = np.repeat(rng.permutation(30), 6).astype(np.float32)
    table["loss/patch"] = np.repeat(lucky, 6).astype(np.float32)
    result = analysis.permutation_importance(table, "loss/patch", num_repeats=1)
    assert result.score.value < 0.15
    assert result.warnings


def test_a_category_is_learned_as_dummies_and_shuffled_whole(planted):
    result = analysis.permutation_importance(planted, "loss/patch", num_repeats=1)
    assert [c.column for c in result.columns].count("sample/shadow/pattern") == 1
    forest = importance._make_forest([1], 0)
    x = np.array([[0.1, 0.0], [0.2, 7.0], [0.3, 3.0]])
    dummies = forest[0].fit_transform(x)
    assert dummies.tolist() == [[1, 0, 0, 0.1], [0, 0, 1, 0.2], [0, 1, 0, 0.3]]
    assert forest[0].transform([[0.5, 4.0]]).tolist() == [[0, 0, 0, 0.5]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.arange(10), True),
        (np.arange(11), False),
        (np.array([0.0, 1.0], np.float32), False),
        (np.array([False, True]), False),
    ],
)
def test_integers_of_few_values_are_categories(values, expected):
    assert importance._is_category(np.tile(values, 3)) is expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("key/0", True),
        ("sample/noise/key/1", True),
        ("sample/a/b/field_key/0", True),
        ("sample/f/key", True),
        ("sample/camera/jitter/seed", True),
        ("sample/key/stops", False),
        ("sample/monkey/0", False),
        ("sample/noise/std_frac", False),
        ("sample/keystone/x_frac/0", False),
    ],
)
def test_keys_are_left_out(column, expected):
    assert importance.is_key(column) is expected


def test_the_same_seed_gives_the_same_numbers(planted):
    state = np.random.get_state()[1].tolist()
    first, again = (analysis.permutation_importance(planted, "found/patch", num_repeats=2) for _ in range(2))
    assert first == again
    assert analysis.permutation_importance(planted, "found/patch", num_repeats=2, seed=1) != first
    assert np.random.get_state()[1].tolist() == state


def test_rows_without_a_number_are_dropped_and_counted(planted):
    planted["loss/patch"][[0, 7, 100]] = [np.nan, np.inf, -np.inf]
    result = analysis.permutation_importance(planted, "loss/patch", num_repeats=1)
    assert (result.dropped, result.score.count) == (3, 177)


def test_few_photographs_are_said_to_be_few(rng):
    table = plant(make_table(rng, photographs=8, draws=10), rng)
    result = analysis.permutation_importance(table, "loss/patch", num_repeats=1)
    assert result.warnings[-1].startswith("8 images are few")


@pytest.mark.parametrize(
    ("metric", "edit", "message"),
    [
        ("found/ptach", {}, "'found/ptach' is no metric of the table; did you mean 'found/patch'"),
        ("path", {}, "'path' is no metric"),
        ("sample/exposure/stops", {}, "'sample/exposure/stops' is no metric"),
        ("flat", {"flat": np.full(180, 0.5)}, "flat is 0.5 in every row: nothing to explain"),
        ("flat", {"flat": np.full(180, np.nan)}, "flat is nowhere finite"),
        ("found/patch", {"image_id": np.arange(180) % 4}, "must be finite on at least 5 images, got 4"),
    ],
)
def test_what_cannot_be_explained_is_refused(planted, metric, edit, message):
    with pytest.raises(ValueError, match=message):
        analysis.permutation_importance(planted | edit, metric)


def test_a_table_without_draws_is_refused(planted):
    fixed = {n: np.zeros_like(c) if n.startswith("sample/") else c for n, c in planted.items()}
    with pytest.raises(ValueError, match="no sampled value varies"):
        analysis.permutation_importance(fixed, "found/patch")
    with pytest.raises(ValueError, match=r"num_repeats.* must be at least 1, got 0"):
        analysis.permutation_importance(planted, "found/patch", num_repeats=0)


@pytest.mark.parametrize(
    ("package", "call"), [("sklearn", "permutation_importance"), ("plotly.offline", "scatter")]
)
def test_a_missing_package_names_the_extra(planted, monkeypatch, tmp_path, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'fpatch\[analysis\]'"):
        getattr(analysis, call)(planted, "found/patch")


# --- the scatter page -------------------------------------------------------------------------------------


def read_page(path):
    """The data in a page, and its script."""
    text = path.read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    return json.loads(data), re.search(r'<script id="explorer">(.*?)</script>', text, re.DOTALL)[1]


@pytest.fixture
def page(planted, tmp_path):
    planted["found/none"] = np.ones(180, bool)
    planted["found/delta"] = planted["found/patch"].astype(np.float32) - 1
    planted["loss/patch"][5] = np.nan
    planted["path"][3] = "</script><b>&.png"
    planted["digest/patch"] = planted["photograph"]
    thumbnails = {0: Image.new("RGB", (600, 300), (200, 30, 30)), 7: Image.new("L", (20, 30), 90)}
    path = tmp_path / "figures" / "scatter.html"
    analysis.scatter(planted, path, y="loss/patch", color="found/patch", images=thumbnails)
    return path


def test_a_page_holds_the_table_and_loads_nothing(page, planted):
    data, _ = read_page(page)
    left_out = {"key/0", "key/1", "sample/noise/key/0", "sample/noise/key/1", "photograph", "digest/patch"}
    assert set(data["columns"]) == set(planted) - left_out
    for name, values in data["columns"].items():
        wanted = planted[name].tolist()
        if planted[name].dtype.kind == "f":
            wanted = [v if np.isfinite(v) else None for v in wanted]
            values = [None if v is None else float(np.float32(v)) for v in values]
        assert values == wanted
    assert data["start"] == {"x": "sample/exposure/stops", "y": "loss/patch", "color": "found/patch"}
    assert data["results"] == {"loss": ["patch"], "found": ["patch", "none"]}
    text = page.read_text()
    assert len(re.findall(r"</script>", text)) == len(re.findall(r"<script", text)) == 3
    assert re.search(r"<(script|link|img)[^>]*(src|href)=", text) is None
    assert "default-src 'none'" in text


def test_thumbnails_are_small_upright_and_keep_their_shape(page):
    data, _ = read_page(page)
    pictures = {}
    for i, uri in data["thumbnails"].items():
        head, _, body = uri.partition(",")
        assert head == "data:image/jpeg;base64"
        pictures[i] = Image.open(io.BytesIO(base64.b64decode(body)))
    assert {i: p.size for i, p in pictures.items()} == {"0": (192, 96), "7": (20, 30)}
    assert np.abs(np.array(pictures["0"]).mean((0, 1)) - (200, 30, 30)).max() < 5


def test_a_page_of_300_rows_stays_small(rng, tmp_path):
    more = {f"metric{i}/patch": rng.normal(size=300).astype(np.float32) for i in range(50)}
    analysis.scatter(make_table(rng, photographs=300, draws=1, **more), tmp_path / "a.html")
    from plotly.offline import get_plotlyjs

    assert (tmp_path / "a.html").stat().st_size - len(get_plotlyjs().encode()) < 300_000


def test_a_page_of_an_unknown_column_is_refused(planted, tmp_path):
    for axis in ("x", "y", "color"):
        with pytest.raises(
            ValueError, match=rf"scatter\({axis}\): no column 'found/ptach'; did you mean 'found/pa"
        ):
            analysis.scatter(planted, tmp_path / "a.html", **{axis: "found/ptach"})
    assert not list(tmp_path.iterdir())


STUBS = """
const made = {}, calls = [];
const node = tag => ({tag, children: [], listeners: {}, append(...x) { this.children.push(...x) },
  replaceChildren(...x) { this.children = x }, addEventListener(n, f) { this.listeners[n] = f },
  on(n, f) { this.listeners[n] = f }});
globalThis.document = {getElementById: id => made[id] ??= node(id), createElement: node};
globalThis.Plotly = {react: (id, traces, layout, config) => calls.push({traces, layout, config})};
made.data = {textContent: require("fs").readFileSync(process.argv[2], "utf8")};
"""
ASK = """
const choose = (x, y, color) => {
  made.x.value = x; made.y.value = y; made.color.value = color; made.color.listeners.change();
};
choose("draw", "found/patch", "(none)");
choose("found/patch", "path", "loss/patch");
choose("loss/patch", "image_id", "sample/shadow/pattern");
made.plot.listeners.plotly_hover({points: [{customdata: 3}]});
const text = x => x.children.length ? x.children.flatMap(text) : [x.src ?? x.textContent];
const options = made.color.children.map(option => option.textContent);
console.log(JSON.stringify({calls, options, row: text(made.row)}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the script of the page")
def test_lists_choose_what_the_axes_and_colors_show(page, planted, tmp_path):
    data, script = read_page(page)
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "script.js").write_text(STUBS + script + ASK)
    done = subprocess.run(
        ["node", str(tmp_path / "script.js"), str(tmp_path / "data.json")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["options"] == ["(none)", *data["columns"]]
    first, plain, bar, categories = (call["traces"] for call in found["calls"])
    columns = data["columns"]

    assert [t["name"] for t in first] == ["false", "true"]
    for t, kind in zip(first, (False, True), strict=True):
        rows = [i for i, hit in enumerate(columns["found/patch"]) if hit is kind]
        assert t["customdata"] == rows
        assert t["x"] == [columns["sample/exposure/stops"][i] for i in rows]
        assert t["y"] == [columns["loss/patch"][i] for i in rows]
        assert t["text"][0].startswith(f"image_id {planted['image_id'][rows[0]]}, draw ")

    (dots,) = plain
    assert dots["x"] == columns["draw"]
    assert [round(y) for y in dots["y"]] == [int(hit) for hit in columns["found/patch"]]
    assert len(set(dots["y"])) > 100
    assert found["calls"][1]["layout"]["yaxis"]["ticktext"] == ["false", "true"]

    (dots,) = bar
    assert dots["y"] == columns["path"]
    assert dots["marker"]["color"] == columns["loss/patch"]
    assert dots["marker"]["colorbar"]["title"]["text"] == "loss/patch"
    assert "<b>" not in dots["text"][3].replace("<br>", "")

    assert [t["name"] for t in categories] == ["0", "1", "2", "3"]
    assert sum(len(t["customdata"]) for t in categories) == 180
    assert len({t["marker"]["color"] for t in categories}) == 4

    row = found["row"]
    assert row[:2] == ["</script><b>&.png", data["thumbnails"]["7"]]
    assert row[row.index("found") + 1 :][:4] == [
        "patch",
        str(columns["found/patch"][3]).lower(),
        "none",
        "true",
    ]
    assert "exposure/stops" in row


def find_browser():
    """A Chromium that can run without a display, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
    cached = Path.home().glob(".cache/ms-playwright/chromium*/*/*chrom*")
    return next(filter(None, map(shutil.which, [*names, *map(str, cached)])), None)


class Browser:
    """A Chromium without a display, asked over a pipe in its DevTools protocol."""

    def __init__(self, folder):
        (theirs_in, self.out), (into, theirs_out) = os.pipe(), os.pipe()
        options = "--headless --no-sandbox --remote-debugging-pipe"
        pipes = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out} 2>/dev/null'
        command = ["bash", "-c", pipes, find_browser(), *options.split(), f"--user-data-dir={folder}"]
        self.process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out))
        os.close(theirs_in)
        os.close(theirs_out)
        self.answers = os.fdopen(into, "rb")
        self.number = 0
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = {
            "sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        }

    def ask(self, method, session=None, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **(session or {})}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            told = b"".join(iter(lambda: self.answers.read(1), b"\0"))
            if (answer := json.loads(told)).get("id") == self.number:
                return answer["result"]

    def run(self, script):
        """The value of a script in the page."""
        return self.ask("Runtime.evaluate", self.session, expression=script, returnByValue=True)["result"][
            "value"
        ]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        self.answers.close()


@pytest.mark.skipif(find_browser() is None, reason="no Chromium to open the page")
def test_a_browser_draws_a_dot_per_row(page, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        browser.ask("Page.navigate", browser.session, url=page.as_uri())
        count = "document.querySelectorAll('.point').length"
        for _ in range(200):
            if browser.run("document.readyState") == "complete" and browser.run(count):
                break
            time.sleep(0.1)
        assert browser.run(count) == 179  # of one row the loss is not finite
        title = browser.run("""
            const x = document.getElementById("x");
            x.value = "sample/tilt/on";
            x.dispatchEvent(new Event("change"));
            document.querySelector(".xtitle").textContent""")
        assert title == "sample/tilt/on"
        assert browser.run("document.querySelector('.xtick text').textContent") == "false"
        tips = "[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title).join()"
        assert "Share" not in browser.run(tips)
        assert "Zoom" in browser.run(tips)
    finally:
        browser.close()


# --- the animation ----------------------------------------------------------------------------------------


def make_run(folder, steps, make_params, scalars=()):
    """A run folder as far as an animation looks at it."""
    (folder / "checkpoints").mkdir(parents=True)
    for step in steps:
        params = {f"params/{name}": value for name, value in make_params(step).items()}
        save_file(params | {"key": torch.zeros(2)}, folder / f"checkpoints/step-{step:08d}.safetensors")
    records = Records(folder)
    for step, values in scalars:
        records.write(step, "scalars", values)
    records.close()
    return folder


def read_frames(path):
    """Frames [h, w, 3] and their durations in ms."""
    with Image.open(path) as picture:
        assert picture.format == "GIF"
        frames = []
        for frame in ImageSequence.Iterator(picture):
            frames.append((np.array(frame.convert("RGB")), frame.info["duration"]))
    return [f for f, _ in frames], [d for _, d in frames], picture.info.get("loop")


def two_patches(step):
    """Few colors, so that a palette holds them all; levels that only rounding gives."""
    wide = torch.zeros(3, 2, 4)
    wide[0, 0, 0], wide[1, 1, 3], wide[2] = 0.999, 0.501, step / 100
    return {"wide": wide, "tall": torch.full((1, 6, 3), 0.7)}


def test_frames_show_the_patches_at_their_steps(tmp_path):
    viz.animate(make_run(tmp_path / "run", [100, 0, 50], two_patches), tmp_path / "made" / "a.gif")
    frames, durations, loop = read_frames(tmp_path / "made" / "a.gif")
    assert (len(frames), durations, loop) == (3, [500, 500, 2000], 0)
    for frame, step in zip(frames, (0, 50, 100), strict=True):
        levels = (two_patches(step)["wide"] * 255).round().byte().permute(1, 2, 0).numpy()
        enlarged = levels.repeat(72, axis=0).repeat(72, axis=1)
        left = 24 + 3 * 48 + 24  # patches stand in the order of their file, by name
        assert np.abs(frame[84:228, left : left + 288].astype(int) - enlarged).max() <= 2
        assert np.abs(frame[84:372, 24:168].astype(int) - 178).max() <= 2
    assert len({frame[20:50, :200].tobytes() for frame in frames}) == 3  # the step


def test_curves_grow_with_the_steps(tmp_path):
    logged = [(i, {"train/loss": 5.0 - i / 50}) for i in range(1, 101)]
    logged += [(50, {"validation/success/patch": 0.25}), (100, {"train/loss": float("inf")})]
    logged = [(s, {n: v if np.isfinite(v) else "inf" for n, v in values.items()}) for s, values in logged]
    viz.animate(make_run(tmp_path / "run", [0, 50, 100], two_patches, logged), tmp_path / "a.gif")
    frames, _, _ = read_frames(tmp_path / "a.gif")
    assert frames[0].shape[1] > 24 + 144 + 24 + 288 + 24 + 320
    blue = [(np.abs(f.astype(int) - (0, 114, 178)).max(2) < 60)[:, 504:] for f in frames]
    chart = [b[90:210] for b in blue]  # without the title
    assert chart[0].sum() == 0
    reach = [c.any(0).nonzero()[0].max() for c in chart[1:]]
    assert reach[1] - reach[0] == pytest.approx(132, abs=6)
    fall = [np.median(c[:, r - 8].nonzero()[0]) for c, r in zip(chart[1:], reach, strict=True)]
    assert fall[1] > fall[0] + 30


def test_checkpoints_beyond_sixty_are_thinned_evenly(tmp_path):
    viz.animate(
        make_run(tmp_path / "run", range(0, 700, 5), lambda s: {"a": torch.full((1, 2, 2), s / 700)}),
        tmp_path / "a.gif",
    )
    frames, durations, _ = read_frames(tmp_path / "a.gif")
    shades = [int(frame[100, 100, 0]) for frame in frames]
    assert (len(frames), set(durations[:-1])) == (60, {100})
    assert (shades[0], shades[-1]) == (0, pytest.approx(253, abs=2))
    assert np.ptp(np.diff(shades)) <= 4


def test_a_patch_larger_than_its_place_is_reduced(tmp_path):
    params = {"a": torch.linspace(0, 1, 600).expand(1, 400, 600).contiguous()}
    viz.animate(make_run(tmp_path / "run", [0], lambda step: params), tmp_path / "a.gif")
    (frame,), _, _ = read_frames(tmp_path / "a.gif")
    assert np.abs(frame[150, 24:312, 0] - np.linspace(0, 255, 288)).max() < 6
    assert (frame[84 + 194, 24:312] == 255).all()


def test_decode_makes_patches_from_parameters(tmp_path):
    run = make_run(tmp_path / "run", [0, 1], lambda step: {"a": torch.full((3, 2, 2), 4.0 - 8 * step)})
    with pytest.raises(ValueError, match=r"'a' of .*step-00000000\.safetensors is no image .* give decode="):
        viz.animate(run, tmp_path / "a.gif")
    assert not (tmp_path / "a.gif").exists()
    viz.animate(run, tmp_path / "a.gif", lambda params: {n: p.sigmoid() for n, p in params.items()})
    frames, _, _ = read_frames(tmp_path / "a.gif")
    assert [int(frame[100, 100, 0]) for frame in frames] == [250, 5]


def test_a_run_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoints/step"):
        viz.animate(tmp_path, tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
