"""opd_verl: on-policy distillation as a verl recipe. The student samples, the teacher scores every sampled token."""

__version__ = "0.1.0"
