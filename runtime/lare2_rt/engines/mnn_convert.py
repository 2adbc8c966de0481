"""Convert one ONNX file for MNN. Run as a script by ``mnn.py``, in the folder that holds the file.

Arguments: name of the ONNX file, name of the result, and the converter's further options. What the converter prints is
the only sign of its success: it returns True whatever happens.

The compiled module ``_tools`` is the converter itself. The package around it, and the command of the same name, must
never be used: they install other packages when they are imported, and report each conversion over the network.
"""

import sys


def main(source: str, target: str, *options: str) -> None:
    """Convert; prints what the converter prints."""
    import _tools

    arguments = ["-f", "ONNX", "--modelFile", source, "--MNNModel", target, "--bizCode", "lare2"]
    _tools.mnnconvert(["convert", *arguments, *options])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit((str(error).splitlines() or [type(error).__name__])[-1])
