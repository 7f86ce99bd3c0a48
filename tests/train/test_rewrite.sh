#!/usr/bin/env bash
# quantize and merge through the program: what a run over their output is, and what they refuse.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"

# a model with weights and a tokenizer; rows of down_proj have 48 elements, of all others 32
sed -e '/^base:/d' -e '/^lora:/d' -e 's/steps: 30/mode: full, steps: 2/' -e 's/dir: out/dir: full/' \
    run.yaml > full.yaml
"$tessera" train full.yaml > log 2>&1 || fail "cannot make a model with weights"
mv full/export plain
cp "$source_dir/examples/base/tokenizer.json" plain/

value() { # key: of the JSON in report
    sed "s/.*\"$1\":\"\([^\"]*\)\".*/\1/" report
}
# name, model, keys of base...: train over it; its losses in name.bits, its base id in `id`
train_over() {
    local name="$1" model="$2"
    shift 2
    rm -rf out
    "$tessera" train run.yaml model.path="$model" model.init=weights train.steps=3 "$@" \
        > log 2>&1 || fail "no run over $name"
    bits_of out | sed '$d' > "$name.bits" # the adapter names its base
    id="$("$tessera" inspect --json out/export |
        sed 's/.*"base.identity":"\([0-9a-f]*\)".*/\1/')"
}

# ---- a run over the output is a run that quantizes while it loads, and has the id that is stated ----
for format in nf4 fp4 int8 qint8 qint4 qint2 qfloat8 e4m3 bf16 f32; do
    "$tessera" quantize plain -o "q-$format" --format "$format" --json > report 2> log ||
        fail "quantize to $format failed"
    train_over "kept-$format" "q-$format" base.format=keep
    [ "$id" = "$(value base.identity)" ] || fail "$format: base id $id, stated: $(cat report)"
    train_over "loaded-$format" plain base.format="$format"
    [ "$id" = "$(value base.identity)" ] || fail "$format on load: base id $id"
    cmp kept-$format.bits loaded-$format.bits || fail "$format: other losses"
done

# ---- half precision, which a run widens, stays in the files ----
"$tessera" quantize plain -o half --format f16 --override '.*=f16' --json > report 2> log ||
    fail "no half precision"
grep -q '"torch_dtype": *"float16"' half/config.json || fail "half: config.json says another dtype"
train_over half half base.format=keep
[ "$id" = "$(value base.identity)" ] || fail "half: base id $id"
for format in nf4 qint4; do
    "$tessera" quantize half -o "h-$format" --format "$format" --json > report 2> log ||
        fail "half to $format failed"
    train_over "h-kept-$format" "h-$format" base.format=keep
    [ "$id" = "$(value base.identity)" ] || fail "half to $format: base id $id"
    train_over "h-loaded-$format" half base.format="$format"
    [ "$id" = "$(value base.identity)" ] || fail "half to $format on load: base id $id"
    cmp "h-kept-$format.bits" "h-loaded-$format.bits" || fail "half to $format: other losses"
done

# a run goes on over scales in half precision when the files that say so are gone
cp -r half gone
go_on() { # steps
    "$tessera" train run.yaml model.path=gone model.init=weights base.format=qint4 output.base=copy \
        "train.steps=$1" --accept-config-change > log 2>&1
}
rm -rf out
go_on 3 || fail "no run over half precision"
rm -r gone
go_on 4 || fail "no resume over half precision without its files"

# ---- the labels of quant_storage change neither the id nor a bit ----
for label in bf16 f16 f32; do
    "$tessera" quantize plain -o "l-$label" --quant-storage "$label" --json > report 2> log ||
        fail "label $label failed"
    train_over "label-$label" "l-$label" base.format=keep
    [ "$id" = "$(value base.identity)" ] || fail "label $label: base id $id"
    cmp label-$label.bits kept-nf4.bits || fail "label $label: other losses"
    cmp -s "l-$label/model.safetensors" q-nf4/model.safetensors && fail "label $label is not there"
done

# ---- GGUF: rows that are no whole blocks are kept, and said so ----
"$tessera" quantize plain -o q8.gguf --format q8_0 --json > report 2> log || fail "no GGUF"
train_over gguf q8.gguf base.format=keep
[ "$id" = "$(value base.identity)" ] || fail "GGUF: base id $id"
[ "$(grep -o '"kept_for_its_rows":true' report | wc -l)" -eq 2 ] ||
    fail "GGUF: expected the down_proj of two layers to be kept"
"$tessera" quantize q8.gguf -o back --format bf16 > log 2>&1 || fail "no way back from GGUF"
"$tessera" eval run.yaml model.path=back model.init=weights base.format=keep data.eval_path=train.h5 \
    --checkpoint none > log 2>&1 || fail "what came back is no model"

# ---- merge: over nf4 a merged model is the model with its adapter ----
train_over trained plain base.format=nf4
"$tessera" merge plain out/export -o merged --dtype f32 --json > report 2> log || fail "no merge"
[ "$id" = "$(value merged.identity)" ] || fail "merged into $(cat report)"
"$tessera" eval run.yaml model.path=merged model.init=weights base.format=keep compute.dtype=f32 \
    data.eval_path=train.h5 --checkpoint none --json > merged.loss 2> log || fail "no eval"
"$tessera" eval run.yaml model.path=plain model.init=weights base.format=nf4 compute.dtype=f32 \
    data.eval_path=train.h5 --checkpoint none --json > base.loss 2> log || fail "no eval"
cmp -s merged.loss base.loss && fail "the adapter left no trace"

# a magnitude per row, and a norm that trains as a whole: what trains is no part of the base
train_over whole plain base.format=nf4 lora.dora=true 'lora.modules_to_save=[model.norm]'
"$tessera" merge plain out/export -o merged-whole --json > report 2> log || fail "no merge of DoRA"
[ "$id" = "$(value merged.identity)" ] || fail "DoRA merged into $(cat report)"
grep -q '"name":"model.norm.weight","noise":[^,]*,"rank":0' report || fail "no norm: $(cat report)"

# what an adapter that starts from the weights belongs to is no model; its difference is of the original
train_over taken plain base.format=nf4 lora.init=pissa
mv out/export taken
"$tessera" export out --difference -o difference > log 2>&1 || fail "no difference"
"$tessera" merge plain difference -o merged-difference > log 2>&1 || fail "no merge of a difference"
train_over trained plain base.format=nf4

# ---- refusals: exit code, texts of the one line separated by '|', arguments; nothing is left ----
cp -r plain bare
rm bare/tokenizer.json
cases=0
refuse() {
    local want="$1" texts="$2" text line rc
    shift 2
    cases=$((cases + 1))
    "$tessera" "$@" > stdout 2> log
    rc=$?
    line="$(grep 'tessera: error:' log)"
    [ "$rc" -eq "$want" ] || fail "$*: exit code $rc, expected $want: $line"
    [ "$(grep -c 'tessera: error:' log)" -eq 1 ] || fail "$*: not one line"
    while IFS= read -r -d '|' text; do
        [[ "$line" == *"$text"* ]] || fail "$*: no '$text' in: $line"
    done <<< "$texts|"
    [ ! -e new ] && [ ! -e new.tessera-tmp ] && [ ! -e new.gguf ] && [ ! -e new.gguf.tmp ] ||
        fail "$*: left $(ls -d new*)"
}
refuse 65 "export gguf|taken|lora.init|--difference" export taken --format gguf --base plain -o new
refuse 64 "no model given|--help" quantize -o new
refuse 64 "-o OUT is missing" quantize plain
refuse 64 "too many" quantize plain plain -o new
refuse 64 "--double-quant|maybe" quantize plain -o new --double-quant maybe
refuse 64 "REGEX=FORMAT|nf4" quantize plain -o new --override nf4
refuse 64 "--quant-storage|i8" quantize plain -o new --quant-storage i8
refuse 65 "--quant-storage|nf4 and fp4" quantize plain -o new --quant-storage bf16 --format qint4
refuse 64 "--max-shard-size|5TB" quantize plain -o new --max-shard-size 5TB
refuse 64 "--threads|0" quantize plain -o new --threads 0
refuse 65 "base.format|int3|nf4" quantize plain -o new --format int3
refuse 65 "base.block_size|65" quantize plain -o new --block-size 65
refuse 65 "base.rule|best|hqq" quantize plain -o new --format qint4 --rule best
refuse 65 "base.group_size|32|48" quantize plain -o new --format qint4 --group-size 32
refuse 65 "int3|nf4" quantize plain -o new --override '.*=int3'
refuse 65 "'plain' exists" quantize plain -o plain
refuse 65 "'nosuch'" quantize nosuch -o new
refuse 65 "q8_0|.gguf" quantize "$source_dir/examples/base" -o new --format q8_0
refuse 65 "nf4|GGUF" quantize plain -o new.gguf
refuse 65 "'bare'|no tokenizer.json" quantize bare -o new.gguf --format f16
refuse 65 "nf4/64/double|again" quantize q-nf4 -o new --format int8
refuse 65 "'run.yaml'" quantize run.yaml -o new
refuse 64 "BASE and ADAPTER" merge plain -o new
refuse 65 "'taken'|nf4/64/double/pissa/r|export --difference" merge plain taken -o new
refuse 65 "'taken'|export --difference" merge plain taken --original -o new
refuse 64 "--rule|--into FORMAT" merge plain out/export -o new --rule hqq
refuse 64 "--dtype|f16" merge plain out/export -o new --dtype f16
refuse 64 "--into and --dtype" merge plain out/export -o new --dtype f32 --into nf4
refuse 64 "--into" merge plain out/export -o new --block-size 32
refuse 65 "'plain' exists" merge plain out/export -o plain
refuse 74 "adapter_config.json" merge plain plain -o new
refuse 65 "q-fp4|--allow-base-change" merge q-fp4 out/export -o new
[ "$cases" -eq 32 ] || fail "$cases refusals"
[ -f plain/model.safetensors ] || fail "a refused command took its input"
