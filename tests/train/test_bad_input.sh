#!/usr/bin/env bash
# Bad input through the program, alone and on 3 ranks: the exit code, one line that names file, key
# and place, no hang, and nothing half done is left behind.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
cases=0
bad=0
ranks="1 3"

# exit code, texts of the line separated by '|', arguments...
refuse() {
    local want="$1" texts="$2" n text line numel
    shift 2
    for n in $ranks; do
        cases=$((cases + 1))
        # killing at once proves that the line is out before any rank leaves
        timeout --kill-after=5 60 mpirun --oversubscribe --mca odls_base_sigkill_timeout 0 \
            -n "$n" "$tessera" "$@" > log 2>&1
        rc=$?
        numel="$(grep -c 'tessera: error:' log)"
        line="$(grep 'tessera: error:' log | head -n 1)"
        if [ "$rc" -ne "$want" ] || [ "$numel" -ne 1 ]; then
            echo "$* (n=$n): exit code $rc, expected $want; $numel error lines: $line"
            bad=$((bad + 1))
        fi
        while IFS= read -r -d '|' text; do
            [[ "$line" == *"$text"* ]] || {
                echo "$* (n=$n): no '$text' in: $line"
                bad=$((bad + 1))
            }
        done <<< "$texts|"
        if compgen -G 'bad/step-*' > /dev/null || [ -e bad/export ] || [ -e bad/metrics.jsonl ]; then
            echo "$* (n=$n): left a partial result: $(ls bad)"
            bad=$((bad + 1))
        fi
        rm -rf bad
    done
}

# the same for `tessera train` with overrides
refuse_key() {
    local want="$1" texts="$2"
    shift 2
    refuse "$want" "$texts" train run.yaml output.dir=bad "$@"
}

# text of a run file as bad.yaml, by a sed script on the good one
refuse_text() {
    local want="$1" texts="$2"
    sed -e 's/dir: out/dir: bad/' -e "$3" run.yaml > bad.yaml
    refuse "$want" "$texts" train bad.yaml
}

# file, offset: flip one bit
flip() {
    local byte
    byte="$(od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' ')"
    printf "\\$(printf %03o $((byte ^ 16)))" |
        dd of="$1" bs=1 seek="$2" conv=notrunc 2> /dev/null
}

size_of() { stat -c %s "$1"; }

# ---- run file ----
refuse 74 "open of 'nosuch.yaml'" train nosuch.yaml
refuse 64 "--help" train
refuse 64 "unknown command 'trian'|--help" trian run.yaml
refuse_text 65 "bad.yaml:1|unknown key 'model.pth'|model.path" '1s/path/pth/'
refuse_text 65 "bad.yaml:1|model.path is given twice" '1s/path: model/path: model, path: model/'
refuse_text 65 "bad.yaml:2|base.block_size|'many'" '2s/64/many/'
refuse_text 65 "bad.yaml:2|base.format|'int3'|nf4" '2s/nf4/int3/'
refuse_text 65 "bad.yaml:3|lora.rank|0" '3s/rank: 4/rank: 0/'
refuse_text 65 "bad.yaml:5|train.steps|3.5" '5s/steps: 30/steps: 3.5/'
refuse_text 65 "bad.yaml:7|'outputs'" '7s/output/outputs/'
refuse_text 65 "bad.yaml" '4s/}//'
refuse_text 65 "bad.yaml|data.path" '4d'
refuse_text 65 "bad.yaml" '1,$d'
for key in model.init=maybe base.block_size=65 lora.dropout=1.0 data.sequence_length=1 \
    data.packing=perhaps train.learning_rate=fast train.micro_batches=0 train.seed=-1 \
    shard.prefetch=2 shard.reduction=approximate compute.threads=0 compute.dtype=f8 \
    adapter.allow_base_change=2 output.keep=0 output.when_busy=panic output.keep_every=-1 output.on_disk_full=panic; do
    refuse_key 65 "argument|${key%%=*}|${key#*=}" "$key"
done
for section in model base lora data train shard compute adapter output; do
    ranks=1 refuse_key 65 "argument|unknown key '$section.nosuch'" "$section.nosuch=1"
done
refuse 65 "model.path|'model' has no weights|model.init=random" plan run.yaml model.init=weights
refuse_key 65 "lora.targets|'k_porj'" "lora.targets=[q_proj, k_porj]"
refuse_key 65 "lora.targets|'q_proj'|a list of ends" lora.targets=q_proj
refuse_key 65 "lora.rank_pattern|'down_porj' matches no module" "lora.rank_pattern={down_porj: 8}"
refuse_key 65 "lora.alpha_pattern|'q_proj.x' matches no module" "lora.alpha_pattern={q_proj.x: 8}"
refuse_key 65 "base.overrides|'lm_haed.weight' matches no tensor" "base.overrides=[{match: lm_haed.weight, format: int8}]"
refuse_key 65 "lora.targets|'roj'|no path ends in it" "lora.targets=[roj]"
refuse_key 65 "output.keep_every|multiple of output.checkpoint_every (2)|3" output.keep_every=3
refuse_key 65 "output.keep_every|multiple of output.checkpoint_every (0)|4" output.keep_every=4 output.checkpoint_every=0
refuse_key 65 "train.seed is given twice" train.seed=1 train.seed=2

# ---- model ----
refuse_key 65 "model.path|'nomodel' is missing|model directory" model.path=nomodel
mkdir empty
refuse_key 65 "model.path|'empty'|config.json" model.path=empty
broken_config() {
    mkdir -p broken
    sed -e "$3" model/config.json > broken/config.json
    refuse_key "$1" "broken/config.json|$2" model.path=broken
    rm -rf broken
}
broken_config 65 "" 's/.*//'
broken_config 65 "" '1s/{//'
broken_config 65 "hidden_size" 's/"hidden_size": 32,//'
broken_config 65 "hidden_size" 's/"hidden_size": 32/"hidden_size": "32"/'
broken_config 65 "num_hidden_layers" 's/"num_hidden_layers": 2/"num_hidden_layers": 0/'
broken_config 65 "num_key_value_heads" 's/"num_key_value_heads": 2/"num_key_value_heads": 3/'
broken_config 65 "model_type|gpt_neox" 's/"model_type": "llama"/"model_type": "gpt_neox"/'
broken_config 65 "rope_theta" 's/"rope_theta": 10000.0/"rope_theta": -1/'
broken_config 65 "hidden_act" 's/"hidden_act": "silu"/"hidden_act": "relu"/'
mkdir small
sed 's/"vocab_size": 4096/"vocab_size": 50/' model/config.json > small/config.json
refuse_key 65 "train.h5|vocabulary of 4096|50" model.path=small

# ---- weights ----
sed -e '/^base:/d' -e '/^lora:/d' -e 's/steps: 30/mode: full, steps: 2/' -e 's/dir: out/dir: full/' \
    run.yaml > full.yaml
"$tessera" train full.yaml > log 2>&1 || fail "cannot make a model with weights"
refuse_weights() {
    refuse_key "$1" "$2" model.path=weights model.init=weights
}
reset_weights() {
    rm -rf weights
    cp -r full/export weights
}
reset_weights
rm weights/model.safetensors
refuse_weights 65 "'weights'|model.safetensors"
weights_nbytes="$(size_of full/export/model.safetensors)"
for ((i = 0; i < 16; i++)); do
    reset_weights
    truncate -s $((weights_nbytes * i / 16 + (i == 1 ? 7 : 0))) weights/model.safetensors
    ranks="$([ $((i % 5)) -eq 0 ] && echo "1 3" || echo 1)" refuse_weights 65 "model.safetensors"
done
for at in 0 3 7 8 9; do
    reset_weights
    flip weights/model.safetensors "$at"
    ranks=1 refuse_weights 65 "model.safetensors"
done
reset_weights
sed -i 's/"intermediate_size": *48/"intermediate_size": 64/' weights/config.json
refuse_weights 65 "model.safetensors|mlp|shape"

# ---- token file ----
refuse_key 74 "'none.h5'" data.path=none.h5
refuse_key 65 "text.jsonl" data.path=text.jsonl
refuse_key 74 "'none.h5'" data.eval_path=none.h5
tokens_nbytes="$(size_of train.h5)"
for ((i = 0; i < 16; i++)); do
    head -c $((tokens_nbytes * i / 16)) train.h5 > bad.h5
    ranks="$([ $((i % 5)) -eq 0 ] && echo "1 3" || echo 1)" refuse_key 65 "bad.h5" data.path=bad.h5
done
for at in 0 8 9 $((tokens_nbytes / 2)) $((tokens_nbytes - 600)); do
    cp train.h5 bad.h5
    flip bad.h5 "$at"
    ranks=1 refuse_key 65 "bad.h5" data.path=bad.h5
done

# ---- launch ----
ranks=3 refuse_key 65 "shard.gather_group|2|3 ranks" shard.gather_group=2
refuse_key 65 "compute.memory_limit|cheapest changes|ranks" compute.memory_limit=2MiB
refuse_key 65 "CUDA|set compute.device: cpu" compute.device=cuda

# ---- checkpoints ----
"$tessera" train run.yaml train.steps=2 output.dir=good > log 2>&1 || fail "cannot make a checkpoint"
good_step="$(basename good/step-*)"
good_base="$(basename good/base/*)"
# file below the run directory, offset
damage() {
    rm -rf ck
    cp -r good ck
    flip "ck/$1" "$2"
}
for place in "$good_step/MANIFEST 300" "$good_step/shard-00000-of-00001.h5 30" \
    "$good_step/shard-00000-of-00001.h5 9000" "base/$good_base/MANIFEST 100" \
    "base/$good_base/shard-00000-of-00001.h5 9000"; do
    file="${place% *}"
    damage "$file" "${place#* }"
    refuse 66 "none verifies|$file" train run.yaml train.steps=2 output.dir=ck
    ranks=1 refuse 65 "$file" train run.yaml train.steps=2 output.dir=ck \
        output.resume="ck/$good_step"
    ranks=1 refuse 65 "$file" verify "ck/$good_step"
    damage "$file" "${place#* }"
    ranks=1 refuse 66 "none verifies|$file" eval run.yaml train.steps=2 output.dir=ck
done
rm -rf ck
cp -r good ck
truncate -s -1 "ck/$good_step/shard-00000-of-00001.h5"
refuse 66 "none verifies|shard-00000-of-00001.h5|bytes" train run.yaml train.steps=2 output.dir=ck
rm "ck/$good_step/shard-00000-of-00001.h5"
refuse 66 "none verifies|shard-00000-of-00001.h5" train run.yaml train.steps=2 output.dir=ck
# a part that is missing is damage, as help and docs/errors.md say
for file in "$good_step/shard-00000-of-00001.h5" "base/$good_base/shard-00000-of-00001.h5" \
    "base/$good_base/MANIFEST"; do
    rm -rf ck
    cp -r good ck
    rm "ck/$file"
    ranks=1 refuse 65 "$file' is missing" verify "ck/$good_step"
    ranks=3 refuse 65 "$file' is missing" train run.yaml train.steps=2 output.dir=ck \
        output.resume="ck/$good_step"
done
refuse_key 66 "'nosuch'|MANIFEST" output.resume=nosuch
refuse 65 "train.learning_rate: 0.02 -> 0.01|--accept-config-change" \
    train run.yaml train.steps=2 train.learning_rate=0.01 output.dir=good
refuse 65 "tensor|lora" train run.yaml train.steps=2 lora.rank=8 output.dir=good \
    --accept-config-change

# ---- what a command needs ----
# another checkpoint than was asked for
digest="$(tail -n 1 "good/$good_step/MANIFEST")"
other="${digest//[0-9]/f}"
"$tessera" verify good --manifest-sha256 "$digest" > log 2>&1 || fail "verify refuses the digest of MANIFEST"
"$tessera" export good -o pinned --manifest-sha256 "$digest" > log 2>&1 || fail "export refuses the digest of MANIFEST"
refuse 65 "$good_step|$digest|$other" eval run.yaml train.steps=2 output.dir=good --manifest-sha256 "$other"
refuse 65 "$good_step|$digest|$other" train run.yaml train.steps=4 output.dir=good --manifest-sha256 "$other"
refuse 65 "$good_step|$digest|$other" export good -o new --manifest-sha256 "$other"
ranks=1 refuse 65 "$good_step|$digest|$other" verify good --manifest-sha256 "$other"
refuse 66 "'bad' holds no checkpoint|$digest" train run.yaml output.dir=bad --manifest-sha256 "$digest"
refuse_key 65 "output.resume: never" output.resume=never --manifest-sha256 "$digest"
ranks=1 refuse 65 "good/export|is for checkpoints" verify good/export --manifest-sha256 "$digest"
ranks=1 refuse 65 "good/export|is for checkpoints" export good/export --format gguf -o new --manifest-sha256 "$digest"
refuse 64 "--checkpoint none" eval run.yaml --checkpoint none --manifest-sha256 "$digest"
refuse 64 "no checkpoint is read with --adapter" eval run.yaml --adapter good/export --manifest-sha256 "$digest"
refuse 64 "64 hex digits|abc" verify good --manifest-sha256 abc
[ ! -e new ] || fail "a refused export left a folder"
refuse 66 "'bad'|no checkpoint" eval run.yaml output.dir=bad
refuse 65 "data.eval_path" eval run.yaml train.steps=2 output.dir=good
refuse 65 "'model'|tokenizer.json|'good'" sample run.yaml train.steps=2 output.dir=good --prompt x
refuse 64 "--prompt" sample run.yaml
mkdir taken
echo "somebody's" > taken/file
refuse 65 "'taken' exists" export good -o taken
[ "$(ls taken)" = file ] || fail "export wrote into a folder that was there"
ranks=1 refuse 66 "run.yaml" export run.yaml -o new
[ ! -e new ] || fail "a refused export left a folder"
refuse_key 74 "'noadapter" adapter.resume=noadapter

# ---- a file that one rank alone cannot read ----
ranks=3
lonely=0
for op in open:1 open:2 open:3 open:4 open:5 open:6 pread:1 pread:2 pread:3 pread:4 pread:6 pread:8 \
    stat:1 stat:2 stat:3; do
    TESSERA_FAULT="1:${op%:*}:${op#*:}:eio" timeout --kill-after=5 60 mpirun --oversubscribe -n 3 \
        "$tessera" train run.yaml train.steps=2 output.dir=lonely > log 2>&1
    rc=$?
    cases=$((cases + 1))
    rm -rf lonely
    [ "$rc" -ne 0 ] || continue # the call was one that may fail
    lonely=$((lonely + 1))
    # a save that is lost tells the cause in a warning before the error that ends the run
    said='error'
    grep -q 'error: .* could not be written' log && said='warn'
    [ "$rc" -eq 74 ] && [ "$(grep -c "$said.* rank 1: " log)" -eq 1 ] &&
        [ "$(grep -c 'tessera: error:' log)" -eq 1 ] &&
        grep -q "$said.*'.*' failed: Input" log || {
        echo "$op on rank 1: exit code $rc: $(grep 'tessera: error' log)"
        bad=$((bad + 1))
    }
done
[ "$lonely" -ge 5 ] || fail "only $lonely of the faults of one rank were met"

# ---- a damaged or different file that ranks 1 and 2 alone see: another folder for them ----
sed -e 's/init: random/init: weights/' -e "s,dir: out,dir: $work/bad," run.yaml > split.yaml
split_reset() {
    rm -rf healthy other
    mkdir healthy
    cp -r full/export healthy/model
    cp split.yaml train.h5 healthy/
    cp -r healthy other
}
# exit code, texts of the line separated by '|'
refuse_split() {
    local text line numel
    cases=$((cases + 1))
    timeout --kill-after=5 60 mpirun --oversubscribe --mca odls_base_sigkill_timeout 0 \
        -n 1 --wdir "$work/healthy" "$tessera" train split.yaml : \
        -n 2 --wdir "$work/other" "$tessera" train split.yaml > log 2>&1
    rc=$?
    numel="$(grep -c 'tessera: error:' log)"
    line="$(grep 'tessera: error:' log | head -n 1)"
    if [ "$rc" -ne "$1" ] || [ "$numel" -ne 1 ]; then
        echo "split files: exit code $rc, expected $1; $numel error lines: $line"
        bad=$((bad + 1))
    fi
    while IFS= read -r -d '|' text; do
        [[ "$line" == *"$text"* ]] || {
            echo "split files: no '$text' in: $line"
            bad=$((bad + 1))
        }
    done <<< "$2|"
    rm -rf bad
}
split_reset
for ((i = 0; i < 16; i += 3)); do
    cp healthy/train.h5 other/train.h5
    truncate -s $(($(size_of healthy/train.h5) * i / 16)) other/train.h5
    refuse_split 65 "rank 1: |train.h5"
done
split_reset
for ((i = 0; i < 16; i += 3)); do
    cp healthy/model/model.safetensors other/model/
    truncate -s $((weights_nbytes * i / 16)) other/model/model.safetensors
    refuse_split 65 "rank 1: |model.safetensors"
done
split_reset
echo '{' > other/model/config.json
refuse_split 65 "rank 1: |config.json"
split_reset
sed -i 's/"rms_norm_eps": *[0-9.e-]*/"rms_norm_eps": 0.001/' other/model/config.json
refuse_split 65 "rank 1|model.config|rank 0"
split_reset
head -n 150 text.jsonl > fewer.jsonl
"$tessera" tokenize "$source_dir/examples/base" fewer.jsonl -o other/train.h5 > log 2>&1 ||
    fail "cannot tokenize"
refuse_split 65 "rank 1|data|rank 0"
split_reset
rm other/model/model.safetensors
refuse_split 65 "rank 1"

[ "$bad" -eq 0 ] || fail "$bad of $cases cases"
echo "$cases cases of bad input"
