"""``python -m lare2_ref.train``; with several GPUs ``torchrun --nproc_per_node N -m lare2_ref.train``."""

from lare2_ref.train.cli import main

if __name__ == "__main__":
    main()
