"""Forms of a base that are made while a bf16 model is loaded, by name: the keys of section base."""

FORMATS = {
    "bf16": dict(format="bf16"),
    "nf4": dict(format="nf4", double_quant="false"),
    "nf4-double": dict(format="nf4", double_quant="true"),
    "fp4": dict(format="fp4", double_quant="false"),
    "q8_0": dict(format="q8_0"),
    "q4_0": dict(format="q4_0"),
    "qint8": dict(format="qint8"),
    "qfloat8": dict(format="qfloat8"),
    "e4m3-raw": dict(format="e4m3", scaling="raw"),
    "e4m3-row": dict(format="e4m3", scaling="row"),
    "int4": dict(format="int4"),
    "int4-hqq": dict(format="int4", rule="hqq"),
    "int2": dict(format="int2"),
    "int2-mse": dict(format="int2", rule="mse"),
    "int2-hqq": dict(format="int2", rule="hqq"),
}
