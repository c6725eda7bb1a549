"""Published axes of a model, imported as a calibration, and measured with.

    python scripts/import_calibration.py --config=configs/import.py --config.axes_file=axes_set_A.npz \\
        --config.compare=axes_set_B.npz,axes_set_C.npz --workdir=runs/imported
    python scripts/measure.py --config=configs/import.py --workdir=runs/imported

The first command takes the time of loading the checkpoint, to which the calibration is bound; with --config.model= and
--config.n_layers=28 it takes seconds and no model, and measure then says that the axes were not checked against its
checkpoint. The second needs what configs/qwen2_5_7b.py says of memory and time.
Expected: a table of scales and cosines (mean over pairs and axes .755 for the published Qwen2.5-7B, .789 for
Llama-3.1-8B) and the folder calibration/; then a profile in the scale `article`, the only one that such files have,
with "–" for every evidence.
"""

from mood_jax.studies.config import study_config


def get_config():
    return study_config(
        "Qwen/Qwen2.5-7B-Instruct",  # empty: bind to no checkpoint
        readout="article",
        scale="article",
        batch_size=128,
        axes_file="",  # the .npz to import
        compare="",  # other .npz of the same model and axes, with commas between, for the table of cosines
        n_layers=0,  # blocks of the model; asked for only where none is named
    )
