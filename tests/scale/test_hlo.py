"""Collectives of a compiled program's text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.scale import hlo

LOOP = """HloModule step

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %one = s32[] constant(STEP)
  %next = s32[] add(%i, %one)
  %all = f32[4,8]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%sum, metadata={op_name="jit(step)/layer"}
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%next, %all)
}

%cond (q: (s32[], f32[4,8])) -> pred[] {
  %q = (s32[], f32[4,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %bound = s32[] constant(BOUND)
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %first = s32[] constant(FIRST)
  %start = (s32[], f32[4,8]{1,0}) tuple(%first, %a)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%cond, body=%bodyKNOWN
  %got = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  %wide = f32[16,8]{1,0} all-gather(%got), dimensions={0}, replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %r = f32[4,8]{1,0} copy(%got)
}
"""


def loop(first=0, bound=12, step=1, known=""):
    return (
        LOOP.replace("FIRST", str(first))
        .replace("BOUND", str(bound))
        .replace("STEP", str(step))
        .replace("KNOWN", known)
    )


@given(st.integers(0, 5), st.integers(6, 40), st.integers(1, 4))
def test_a_loop_turns_from_its_first_value_to_its_bound_by_its_step(first, bound, step):
    found = {one.kind: one for one in hlo.collectives(loop(first, bound, step), np.zeros(8, int))}
    assert found["all-reduce"].executed == len(range(first, bound, step))
    assert found["all-reduce"].bytes == 4 * 8 * 4 and found["all-reduce"].operation == "jit(step)/layer"
    assert found["all-gather"].executed == 1 and found["all-gather"].total == 16 * 8 * 4


def test_what_the_compiler_says_of_a_loop_counts():
    text = loop(known=', backend_config={"known_trip_count":{"n":"5"}}')
    assert next(one.executed for one in hlo.collectives(text, np.zeros(8, int)) if one.kind == "all-reduce") == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), y", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}, z", [[0, 1], [1, 2], [2, 3], [3, 0]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, use", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, use", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, use", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=2], device_ids=([2,2]T(1,0)) {'b'}, use", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4], device_ids=([4]) {'a'}, use", [[0, 1, 2, 3]]),
        ("channel_id=1", [[0, 1, 2, 3]]),
    ],
)
def test_groups_of_devices_are_read_in_every_form(text, expected):
    np.testing.assert_array_equal(hlo.groups(text, 4), expected)


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("%g = (bf16[2,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%x), dimensions={0}", 2 * 16 * 8),
        ("%g = ((f32[2]{0}, f32[4]{0}), (f32[8]{0}, f32[16]{0})) all-gather-start(%x, %y), dimensions={0}", 4 * 24),
        ("%p = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x)", 2 * 32),
        ("%r = (f32[4]{0}, f32[8]{0}) all-reduce-start(%x, %y), to_apply=%sum", 4 * 12),
        ("%s = f32[4]{0} reduce-scatter(%x), dimensions={0}, to_apply=%sum", 16),
    ],
)
def test_a_started_collective_counts_what_it_brings(line, size):
    text = f"ENTRY %main (a: f32[4]) -> f32[4] {{\n  {line}\n}}\n"
    (one,) = hlo.collectives(text, np.zeros(8, int))
    assert one.total == size


def test_what_ends_a_collective_is_not_counted_again_and_a_fused_reduction_keeps_its_share():
    text = """%all-reduce-scatter.1 (x: f32[16]) -> f32[4] {
  %x = f32[16]{0} parameter(0)
  %all = f32[16]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %mine = f32[4]{0} dynamic-slice(%all, %i), dynamic_slice_sizes={4}
}

ENTRY %main (a: f32[16]) -> f32[4] {
  %a = f32[16]{0} parameter(0)
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(%b), dimensions={0}
  %done = f32[16]{0} all-gather-done(%start)
  ROOT %f = f32[4]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    assert sorted((one.kind, one.total) for one in hlo.collectives(text, np.zeros(4, int))) == [
        ("all-gather", 64),
        ("reduce-scatter", 16),
    ]


def test_what_goes_between_slices_is_what_their_runtime_receives():
    """libtpu compiles for one slice: groups name its devices, here of a mesh whose second axis has the slices."""
    attributes = """is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:1}",_xla_megascale_transfer_type="ALL_REDUCE"}"""
    text = f"""
ENTRY %main (x: bf16[8]) -> bf16[8] {{
  %x = bf16[8]{{0}} parameter(0)
  %within = bf16[8]{{0}} all-reduce(%x), channel_id=1, replica_groups={{{{0,1}}}}, to_apply=%add
  %send = (bf16[8]{{0}}, u32[], token[]) send(%within, %token), {attributes}
  ROOT %recv = (bf16[8]{{0}}, u32[], token[]) recv(%token), {attributes}
}}
"""
    within, between = hlo.collectives(text, np.array([0, 1, 0, 1]))
    assert (within.kind, within.bytes, within.groups.tolist()) == ("all-reduce", 16, [[0, 2]])
    assert (between.kind, between.bytes, between.groups.tolist()) == ("all-reduce", 16, [[0, 1], [2, 3]])
