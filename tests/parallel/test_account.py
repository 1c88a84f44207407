"""The account of compiled programs, from short program texts as XLA writes them and from programs for the CPU."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vidformers.parallel.account import account, argument_bytes, buffer_bytes, collectives
from vidformers.parallel.hlo import Program, arrays
from vidformers.parallel.mesh import make_mesh

pytestmark = pytest.mark.quick

HEAD = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,128]{1,0})->f32[8,128]{1,0}}

FileNames
1 "/lib/flax/nnx/module.py"
2 "/home/me/vidformers/models/encoder.py"
3 "/home/me/vidformers/layers/linear.py"

FunctionNames
1 "main"
2 "Block.__call__"
3 "Mlp.__call__"
4 "Linear.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=5 end_line=5 column=1 end_column=9}
2 {file_name_id=2 function_name_id=2 line=40 end_line=40 column=1 end_column=9}
3 {file_name_id=3 function_name_id=3 line=50 end_line=50 column=1 end_column=9}
4 {file_name_id=3 function_name_id=4 line=60 end_line=60 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=4}

"""
LOOP = """%cond (p: (s32[], f32[8,128])) -> pred[] {
  %p = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p.1 = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  INSTRUCTION
  ROOT %t = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%i.1, %y)
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%zero, %a)
  %loop = (s32[], f32[8,128]{1,0:T(8,128)}) while(%start), condition=%cond, body=%bodyTRIPS
  ROOT %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""
CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'


def entry(*lines: str, before: str = "") -> str:
    """Returns a program of one computation, beside those of `before`."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"{HEAD}{before}ENTRY %main (a: f32[8,128]) -> f32[8,128] {{\n{body}\n}}\n"


def fusion(*opcodes: str) -> tuple[str, str]:
    """Returns a fused computation of opcodes, and a fusion that calls it with an estimate of 7 cycles."""
    lines = "\n".join(f"  %v.{i} = f32[8,128]{{1,0}} {opcode}(%q)" for i, opcode in enumerate(opcodes))
    computation = f"%fused (q: f32[8,128]) -> f32[8,128] {{\n  %q = f32[8,128]{{1,0}} parameter(0)\n{lines}\n}}\n\n"
    return computation, f"%f = f32[8,128]{{1,0}} fusion(%a), kind=kLoop, calls=%fused, {CYCLES % 7}"


@pytest.mark.parametrize("stated, times", [(', backend_config={"known_trip_count":{"n":"5"}}', 5), ("", 12)])
def test_an_operation_in_a_loop_counts_once_for_each_iteration(stated, times):
    text = LOOP.replace("INSTRUCTION", f"%y = f32[8,128]{{1,0:T(8,128)}} copy(%x), {CYCLES % 100}")
    costs = account(HEAD + text.replace("TRIPS", stated))
    (operation,) = (each for each in costs.operations if each.name == "y")
    assert (operation.times, operation.cycles, costs.cycles) == (times, 100 * times, 100 * times)
    assert operation.bytes == 2 * 8 * 128 * 4 * times


@pytest.mark.parametrize("step", [1, 2, 5])
def test_collectives_in_a_loop_count_once_for_each_iteration(step):
    """XLA unrolls products in rings over devices: the counter then grows by 2."""
    counter = (
        f"%by = s32[] constant({step})\n  %i.0 = s32[] get-tuple-element(%p.1), index=0\n  %i.1 = s32[] add(%i.0, %by)"
    )
    reduced = "%y = f32[8,128]{1,0} all-reduce(%x), channel_id=1, to_apply=%add"
    text = LOOP.replace("INSTRUCTION", f"{counter}\n  {reduced}").replace("TRIPS", "")
    times = {1: 12, 2: 6, 5: 3}[step]
    assert collectives(HEAD + text) == {"all-reduce": {"count": times, "bytes": times * 4096}}


def test_an_asynchronous_collective_counts_once_with_the_bytes_of_its_result():
    text = entry(
        "%s = (f32[8,128]{1,0}, f32[64,128]{1,0}) all-gather-start(%a), channel_id=1, dimensions={0}",
        "%d = f32[64,128]{1,0} all-gather-done(%s)",
        "%r = f32[8,128]{1,0} all-reduce-start(%a), channel_id=2, to_apply=%add",
        "%e = f32[8,128]{1,0} all-reduce-done(%r)",
    )
    assert collectives(text) == {
        "all-gather": {"count": 1, "bytes": 64 * 128 * 4},
        "all-reduce": {"count": 1, "bytes": 8 * 128 * 4},
    }


def test_a_collective_that_spans_several_fusions_counts_where_it_starts():
    """On TPUs, each fusion that runs while the collective is under way contains it."""
    gather = '%%g.%d = bf16[64,128]{1,0} all-gather(%%q), channel_id=1, frontend_attributes={chain_id="0"}'
    targets = ("AsyncCollectiveStart", "Other", "AsyncCollectiveDone")
    before = "".join(
        f"%fused.{i} (q: f32[8]) -> f32[8] {{\n  {gather % i}\n  %c.{i} = f32[8] custom-call(%g.{i}), "
        f'custom_call_target="{target}"\n}}\n\n'
        for i, target in enumerate(targets)
    )
    lines = [f"%f.{i} = bf16[64,128]{{1,0}} fusion(%a), kind=kCustom, calls=%fused.{i}" for i in range(3)]
    assert collectives(entry(*lines, before=before)) == {"all-gather": {"count": 1, "bytes": 64 * 128 * 2}}


def test_an_all_reduce_of_which_each_device_keeps_its_part_is_a_reduce_scatter():
    before = "%all-reduce-scatter.3 (q: f32[64]) -> f32[8] {\n  %r = f32[64]{0} all-reduce(%q), channel_id=1\n}\n\n"
    text = entry("%f = f32[8]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3", before=before)
    assert collectives(text) == {"reduce-scatter": {"count": 1, "bytes": 32}}


@pytest.mark.parametrize(
    "opcodes, kind",
    [
        (("convert", "convolution", "reduce"), "product"),
        (("dot",), "product"),
        (("multiply", "reduce"), "reduction"),
        (("copy", "transpose"), "copy"),
        (("convert", "dynamic-update-slice"), "stack"),
        (("exponential", "dynamic-update-slice"), "elementwise"),
        (("add",), "elementwise"),
        (("all-gather", "copy"), "all-gather"),
        (("all-gather", "convolution"), "product"),
    ],
)
def test_the_kind_of_a_fusion_is_that_of_its_most_expensive_operation(opcodes, kind):
    before, line = fusion(*opcodes)
    (operation,) = account(entry(line, before=before)).operations
    assert (operation.kind, operation.cycles) == (kind, 7)


def test_a_reshape_has_its_estimate_elsewhere():
    config = 'backend_config={"integer_config":{"integer":"57344"},"scoped_memory_configs":[]}'
    costs = account(entry(f"%r = bf16[2,64]{{1,0}} reshape(%a), {config}"))
    assert costs.cycles_by(lambda operation: operation.kind) == {"reshape": 57344}


def test_shapes_are_read_with_their_tiles_memories_and_types():
    first, second, third = arrays(
        "(bf16[2,197,64]{2,1,0:T(8,128)(2,1)}, /*index=1*/f32[100]{0:T(128)S(1)}, s4[10]{0}, token[])"
    )
    assert (first.bytes, first.padded_bytes, first.in_device_memory) == (2 * 197 * 64 * 2, 2 * 200 * 128 * 2, True)
    assert (second.bytes, second.padded_bytes, second.in_device_memory) == (400, 512, False)
    assert third.bytes == 5
    (transposed,) = arrays("f32[3,130]{0,1:T(8,128)}")
    assert transposed.padded_bytes == 136 * 128 * 4
    (scalar,) = arrays("u32[]{:S(2)}")
    assert (scalar.bytes, scalar.in_device_memory) == (4, False)


def test_operations_without_an_estimate_are_listed():
    text = entry(
        "%a = f32[1024,128]{1,0} parameter(0)",
        '%k = f32[8,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"',
        '%s = f32[8,128]{1,0} custom-call(%a), custom_call_target="TopK"',
        '%b = f32[1024,128]{1,0} custom-call(%a), custom_call_target="ConcatBitcast"',
        f"%c = f32[1024,128]{{1,0}} copy(%a), {CYCLES % 9}",
        "%n = f32[1024,128]{1,0} negate(%a)",
        "%small = f32[4]{0} negate(%t)",
        "%p = ((f32[1024,128]{1,0}), f32[256,128]{1,0:S(1)}, u32[]) slice-start(%a), slice={[0:256], [0:128]}",
        "%q = f32[256,128]{1,0:S(1)} slice-done(%p)",
    )
    costs = account(text)
    assert [(each.name, each.kind) for each in costs.unestimated] == [
        ("n", "negate"),
        ("k", "kernel"),
        ("s", "custom call TopK"),
    ]
    assert costs.cycles == 9
    (copied,) = (each for each in costs.operations if each.kind == "asynchronous copy")
    assert copied.bytes == 256 * 128 * 4


def test_bytes_in_the_memory_of_the_core_are_not_counted():
    text = entry(
        "%a = f32[1024,128]{1,0:S(1)} parameter(0)",
        f"%c = f32[1024,128]{{1,0}} negate(%a), {CYCLES % 9}",
        f"%d = f32[1024,128]{{1,0:S(1)}} negate(%a), {CYCLES % 9}",
    )
    assert [each.bytes for each in account(text).operations] == [1024 * 128 * 4, 0]


def test_an_update_in_place_counts_the_bytes_of_the_update():
    text = entry(
        "%a = f32[12,1024,128]{2,1,0} parameter(0)",
        "%u = f32[1,1024,128]{2,1,0} parameter(1)",
        "%d = f32[12,1024,128]{2,1,0} dynamic-update-slice(%a, %u, %i, %i, %i)",
        "%e = f32[1,1024,128]{2,1,0} dynamic-slice(%a, %i, %i, %i), dynamic_slice_sizes={1,1024,128}",
    )
    assert [each.bytes for each in account(text).operations] == [2 * 1024 * 128 * 4] * 2


def test_an_operation_is_counted_at_the_sublayer_and_the_line_that_made_it():
    before, line = fusion("add")
    text = entry(
        f'%m = f32[8]{{0}} negate(%a), metadata={{op_name="jit(step)/jvp()/neg" stack_frame_id=4}}, {CYCLES % 5}',
        f"%copied = f32[8]{{0}} copy(%m), {CYCLES % 1}",
        line,
        f'%o = f32[8]{{0}} negate(%a), metadata={{op_name="jit(step)/jvp(time)/while/body/neg"}}, {CYCLES % 2}',
        before=before.replace("add(%q)", 'add(%q), metadata={op_name="jit(step)/add" stack_frame_id=4}'),
    )
    costs = account(text)
    assert costs.cycles_by(lambda operation: operation.sublayer) == {"Mlp": 13, "time": 2}
    assert {each.source for each in costs.operations} == {"layers/linear.py:60 Linear.__call__", ""}
    assert [each.name for each in costs.largest(2)] == ["f", "m"]


def test_frames_are_read_whatever_number_a_frame_without_parent_has():
    """XLA (jaxlib 0.10) prints the numbers of parents plus one."""
    plain = HEAD
    for frame in (1, 2, 3, 4):
        plain = plain.replace(
            f"location_id={frame} parent_frame_id={frame}", f"location_id={frame} parent_frame_id={frame - 1}"
        )
    for head in (HEAD, plain):
        assert [frame.function for frame in Program(head).stack(3)] == ["Mlp.__call__", "Block.__call__", "main"]


def test_a_circular_table_of_frames_ends():
    circular = HEAD.replace("location_id=2 parent_frame_id=2", "location_id=2 parent_frame_id=4")
    assert [frame.function for frame in Program(circular).stack(3)] == ["Mlp.__call__", "Block.__call__"]


def test_the_bytes_are_those_of_the_buffers_in_device_memory(tmp_path):
    report = tmp_path / "module_0003.jit_step.after_optimizations-memory-usage-report.txt"
    report.write_text(
        "Memory Space: alternate (color=1)\nTotal bytes: 117440512 (112.00MiB)\n\n"
        "Memory Space: default (color=0)\nTotal bytes: 750121472 (715.37MiB)\n"
    )
    assert buffer_bytes(tmp_path) == 750121472


def test_a_program_for_the_cpu_is_read():
    mesh = make_mesh(data=8)
    sharded, replicated = (NamedSharding(mesh, spec) for spec in (P("data"), P()))

    def step(w, x):
        return jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), y.sum()), x, w)

    w, x = (
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        for shape, sharding in (((3, 16, 16), replicated), ((8, 16), sharded))
    )
    text = jax.jit(step).lower(w, x).compile().as_text()
    exchanged = collectives(text)
    assert exchanged["all-reduce"] == {"count": 3, "bytes": 3 * 4}
    assert max(each.times for each in account(text).operations) == 3
    assert account(text).cycles == 0


def test_a_fusion_that_slices_an_operand_reads_the_slices_alone():
    fused = (
        "%fused (q: f32[64,8,128], i: s32[]) -> f32[8,128] {\n"
        "  %q = f32[64,8,128]{2,1,0} parameter(0)\n  %i = s32[] parameter(1)\n"
        "  %d = f32[1,8,128]{2,1,0} dynamic-slice(%q, %i, %i, %i), dynamic_slice_sizes={1,8,128}\n"
        "  ROOT %r = f32[8,128]{1,0} USE\n}\n\n"
    )
    lines = "%a = f32[64,8,128]{2,1,0} parameter(0)", "%f = f32[8,128]{1,0} fusion(%a, %z), kind=kLoop, calls=%fused"
    slices, whole = (
        account(entry(*lines, before=fused.replace("USE", use))).operations[0].bytes
        for use in ("reshape(%d)", "add(%q, %d)")
    )
    assert slices == 2 * 4 * 8 * 128
    assert whole == 65 * 4 * 8 * 128


def test_a_fusion_that_updates_a_part_of_an_operand_in_place_writes_the_update_alone():
    fused = (
        "%fused (q: f32[64,8,128], u: f32[8,128], i: s32[]) -> f32[64,8,128] {\n"
        "  %q = f32[64,8,128]{2,1,0} parameter(0)\n  %u = f32[8,128]{1,0} parameter(1)\n  %i = s32[] parameter(2)\n"
        "  %b = f32[1,8,128]{2,1,0} bitcast(%u)\n"
        "  ROOT %r = f32[64,8,128]{2,1,0} dynamic-update-slice(%q, %b, %i, %i, %i)\n}\n\n"
    )
    lines = (
        "%a = f32[64,8,128]{2,1,0} parameter(0)",
        "%x = f32[8,128]{1,0} parameter(1)",
        "%f = f32[64,8,128]{2,1,0} fusion(%a, %x, %z), kind=kLoop, calls=%fused",
    )
    assert account(entry(*lines, before=fused)).operations[0].bytes == 2 * 4 * 8 * 128


def test_arguments_have_the_names_of_jax_and_the_bytes_of_whole_tiles():
    text = entry(
        "%a = f32[8,128]{1,0:T(8,128)} parameter(0), metadata={op_name=\"state.parameters[\\'head\\'][\\'kernel\\']\"}",
        "%b = f32[100]{0:T(128)} parameter(1), metadata={op_name=\"batch[\\'mask\\']\"}",
    )
    assert argument_bytes(text) == {"state.parameters['head']['kernel']": 4096, "batch['mask']": 512}
