"""Checks of several teachers in one run (`opd.teachers`), against the objective and the training data."""

import math
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig
from pyarrow.parquet import read_schema, read_table
from pyarrow.types import is_nested

from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig, routed_by, teacher_key
from opd_verl.config.overrides import strings
from opd_verl.config.sections import Combine
from opd_verl.objectives.names import TEACHER_SUPPORTS, Placement, Support

READ_TEACHER_ENTROPY = ("top_teacher_entropy", "top_either_entropy")
"""Token masks that read the teacher's entropy."""
WHOLE_STEP = {
    "max_missing_share": "is a limit on the whole step, not on one teacher",
    "sync_every": "only a single teacher takes the student's weights",
}
"""Keys of `opd.teacher` that a named teacher may not change."""


def check_named(config: DictConfig, opd: OpdConfig) -> None:
    """Refuses a key of a named teacher that the run would not read."""
    (unread, default), reader = ("weight", 1.0), Combine.average
    if opd.combine is Combine.average:
        (unread, default), reader = ("values", []), Combine.route
    for name, teacher in opd.teachers.items():
        for field, problem in WHOLE_STEP.items():
            value, common = getattr(teacher, field), getattr(opd.teacher, field)
            if value != common:
                raise ConfigError(f"{teacher_key(name)}.{field}", value, problem, f"opd.teacher.{field}={common}")
        if (value := getattr(teacher, unread)) != default:
            problem, remedy = f"only opd.combine={reader} reads it", f"drop it, or opd.combine={reader}"
            raise ConfigError(f"{teacher_key(name)}.{unread}", value, problem, remedy)
    if opd.teachers and opd.teacher.sync_every:
        problem = WHOLE_STEP["sync_every"]
        raise ConfigError("opd.teacher.sync_every", opd.teacher.sync_every, problem, "opd.teacher.sync_every=0")


def check_routes(config: DictConfig, opd: OpdConfig) -> None:
    """Every value of the data field belongs to one teacher, in the training files that can be read here."""
    if (field := routed_by(opd)) is None:
        return
    owner: dict[str, str] = {}
    for name, teacher in opd.teachers.items():
        key = f"{teacher_key(name)}.values"
        if not teacher.values:
            raise ConfigError(key, [], "this teacher would score nothing", f"++{key}=[a value of {field}]")
        for value in teacher.values:
            if owner.setdefault(value, name) != name:
                problem = f"{value!r} is a value of teacher {owner[value]} too"
                raise ConfigError(key, teacher.values, problem, "give the value to one teacher")
    for file in parquet_files(config):
        for read in distinct(file, field):
            if read not in owner:
                known = ", ".join(f"{value}: {name}" for value, name in owner.items())
                problem = f"{file} has {field}={read!r}, which is in the values of no teacher ({known})"
                raise ConfigError("opd.teachers", list(opd.teachers), problem, "add it to the `values` of one teacher")


def parquet_files(config: DictConfig) -> Iterator[Path]:
    """Training files that lie on this machine."""
    for file in strings(config.data.train_files):
        path = Path(str(file)).expanduser()
        if path.suffix == ".parquet" and path.is_file():
            yield path


def distinct(file: Path, field: str) -> list[str]:
    """The distinct values of a column as the router sees them; none where there is no such column."""
    schema = read_schema(file)
    if field not in schema.names:
        return []
    if is_nested(schema.field(field).type):
        problem = f"{file} holds {schema.field(field).type} there, not one value"
        raise ConfigError("opd.route_field", field, problem, "opd.route_field=data_source")
    return [str(value) for value in read_table(file, columns=[field]).column(0).unique().to_pylist()]


def check_average(config: DictConfig, opd: OpdConfig) -> None:
    """Under averaged teachers, a run may read only q at the sampled token and at the student's ids."""
    if not opd.teachers or opd.combine is not Combine.average:
        return
    for name, teacher in opd.teachers.items():
        if not 0.0 < teacher.weight < math.inf:
            key = f"{teacher_key(name)}.weight"
            raise ConfigError(key, teacher.weight, "must be positive", "drop the override, or the teacher")
    if (support := opd.objective.support) in (*TEACHER_SUPPORTS, Support.full):
        problem = "averaged teachers have no common top-k or LM head: q is known at the sampled token and student's ids"
        raise ConfigError("opd.objective.support", support.value, problem, "opd.objective.support=student_topk")
    if (placement := opd.forward_kl.placement) is not Placement.none:
        problem = "it reads the teacher's top-k, which averaged teachers do not have in common"
        raise ConfigError("opd.forward_kl.placement", placement.value, problem, "opd.forward_kl.placement=none")
    for mask in set(opd.tokens.masks) & set(READ_TEACHER_ENTROPY):
        problem = "it reads the teacher's entropy, and a mixture's entropy does not follow from the teachers' entropies"
        raise ConfigError("opd.tokens.masks", mask, problem, "opd.tokens.masks=[top_student_entropy]")


def check_one_head(config: DictConfig, opd: OpdConfig) -> None:
    """The whole vocabulary's q_t is formed in the actor, from one teacher's LM head."""
    if len(opd.teachers) > 1 and opd.objective.support is Support.full:
        problem = "the actor forms q from the LM head of one teacher, and there are several"
        raise ConfigError("opd.objective.support", "full", problem, "opd.objective.support=student_topk")


CHECKS = (check_named, check_routes, check_average, check_one_head)
