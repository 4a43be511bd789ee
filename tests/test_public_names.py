"""What users may rely on: a change of this list is a change for them, and belongs in the changelog."""

import ast
import importlib
import inspect
import subprocess
import sys
import time

import pytest
from study_fixture import environment

import fpatch

NAMES = {
    "fpatch": """
        Node Objective Optimizer Pipeline Range Resource Run Stage Study TrainState __version__ analysis
        build compose control create data define define_loader deterministic evaluate evaluate_run fit
        from_columns implant infer keep_freed_memory load_study losses make_optimizer make_population_step
        make_state make_step metrics node override pipeline random replay replay_run resume resume_sweep
        row_keys success sweep to_columns train tune value_and_grad viz
    """,
    "fpatch.create": """
        fourier generator high_pass icc_profile low_pass mask mask_image palette pixels
        proof_table reflect resize save scroll snap soft_proof spectrum stack symmetric tanh tile
    """,
    "fpatch.implant": "fill_box fixed_ratio rectangle warp",
    "fpatch.compose": """
        affine augmentation blur color_jitter contrast defocus erasing exposure gamma grayscale
        horizontal_flip hue invert jpeg motion_blur read_noise resample resized_crop saturation shadow
        solarize tilt translation vertical_flip white_balance
    """,
    "fpatch.infer": """
        classifier detector ensemble lighter suppress torchvision_detector torchvision_model
        transformers_detector transformers_model ultralytics_model yolo
    """,
    "fpatch.losses": """
        color_list ensemble hallucinate latency lp_distance misclassify non_printability relabel
        saliency total_variation vanish
    """,
    "fpatch.metrics": """
        Rate average_precision bootstrap_mean by_name class_hit detection_hit mean_average_precision
        num_photographs object_hit score_detections torchmetric torchmetrics wilson
    """,
    "fpatch.analysis": "Importance Importances permutation_importance scatter",
    "fpatch.tune": """
        Choice Halving Interval Journal Population Space SpaceError Sweep export_trial fetch_sweep find_entry
        load_plan parse_space read_plan resume_sweep run_plan sweep
    """,
    "fpatch.viz": "HeatMap Panel animate plot plot_boxes plot_curves plot_heat_maps side_by_side",
    "fpatch.data": """
        Dataset Loader TargetSet draws image_digest image_file indices letterbox move_boxes move_points
        read_image rows targets write_image
    """,
}


@pytest.mark.parametrize("module", NAMES)
def test_the_names_are_these(module):
    names = importlib.import_module(module).__all__
    assert sorted(names) == NAMES[module].split()
    for name in names:
        value = getattr(importlib.import_module(module), name)
        assert name == "__version__" or value.__doc__


def test_type_checkers_see_the_names_that_are_loaded_late():
    guarded = next(n for n in ast.parse(inspect.getsource(fpatch)).body if isinstance(n, ast.If))
    seen = {alias.name for n in guarded.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert seen == set(fpatch.__all__) - {"__version__"}
    assert set(dir(fpatch)) >= seen


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'fpatch' has no attribute 'patchify'"):
        _ = fpatch.patchify


def test_importing_it_imports_nothing_heavy():
    code = "import sys, fpatch; print({'torch', 'numpy', 'kornia', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_answers_at_once(words):
    command = [sys.executable, "-m", "fpatch", *words]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0
    assert "fpatch" in done.stdout
