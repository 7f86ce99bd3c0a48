#!/usr/bin/env bash
# What the program says to somebody who is new to it: what a run is at its start, mistakes that would
# not stop it, numbers of an evaluation, and a terminal's lines.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"

says() { grep -qF -- "$1" log || fail "no '$1' in the log"; }
silent() { ! grep -qF -- "$1" log || fail "'$1' in the log"; }

# Documents that do not end, and those without a loss: neither is an error.
"$tessera" tokenize "$source_dir/examples/base" text.jsonl -o bare.h5 > /dev/null 2> log || fail tokenize
says "warn 200 documents have no token at their end"
"$tessera" tokenize "$source_dir/examples/base" text.jsonl --eos '<|end_of_text|>' -o ended.h5 > /dev/null 2> log || fail tokenize
silent warn
mkdir named
cp "$source_dir"/examples/base/tokenizer*.json named
for names in named named/tokenizer.json; do
    "$tessera" tokenize "$names" text.jsonl --eos auto -o auto.h5 > /dev/null 2> log || fail "tokenize --eos auto"
    cmp -s ended.h5 auto.h5 || fail "--eos auto of $names: another file than with the token itself"
done
echo '{"eos_token": {"content": "<|end_of_text|>"}}' > named/tokenizer_config.json
"$tessera" tokenize named text.jsonl --eos auto -o auto.h5 > /dev/null 2> log || fail "tokenize --eos auto"
cmp -s ended.h5 auto.h5 || fail "--eos auto: an object is not read"
endless=1000000000000000019884624838656 # int(1e30), which models without a limit have
echo "{\"model_max_length\": $endless, \"eos_token\": \"<|end_of_text|>\"}" > named/tokenizer_config.json
"$tessera" tokenize named text.jsonl --eos auto -o auto.h5 > /dev/null 2> log || fail "tokenize --eos auto"
cmp -s ended.h5 auto.h5 || fail "--eos auto: not read beside a big integer"
echo '{}' > named/tokenizer_config.json
! "$tessera" tokenize named text.jsonl --eos auto -o auto.h5 > /dev/null 2> log || fail "an end token from nowhere"
says "named/tokenizer_config.json"
echo '{"prompt": "p", "completion": ""}' > prompt.jsonl
"$tessera" tokenize "$source_dir/examples/base" text.jsonl prompt.jsonl -o both.h5 > /dev/null 2> log || fail tokenize
says "warn 1 documents have no token that counts in the loss"

# A template that the model does not know is said, and one that it does is not.
chat_model() { # TEXT OF THE TEMPLATE
    rm -rf chat
    mkdir chat
    cp "$source_dir/tests/golden/tokenizers/qwen2.json" chat/tokenizer.json
    printf '{"chat_template": "%s"}\n' "$1" > chat/tokenizer_config.json
}
tokenize_chats() { "$tessera" tokenize chat chats.jsonl --chat-template "$@" -o chats.h5 > /dev/null 2> log || fail "tokenize chats"; }
echo '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>So</think>Yes"}]}' > chats.jsonl
chat_model "{% for m in messages %}<|im_start|>"
tokenize_chats chatml
silent warn
tokenize_chats qwen3
says "warn --chat-template qwen3: the template of 'chat/tokenizer_config.json' looks like chatml"
echo "<|im_start|> reasoning </think>" > chat/chat_template.jinja # what newer versions write
tokenize_chats qwen3
silent warn
tokenize_chats chatml
says "warn --chat-template chatml: the template of 'chat/chat_template.jinja' looks like qwen3"
rm chat/chat_template.jinja
config() { printf '%s\n' "$1" > chat/tokenizer_config.json; }
for template in '"<|im_start|>"' '{"tool_use": "x", "default": "<|im_start|>"}' '[{"name": "default", "template": "<|im_start|>"}]'; do
    config "{\"model_max_length\": $endless, \"chat_template\": $template}"
    tokenize_chats chatml
    silent warn
    tokenize_chats qwen3
    says "looks like chatml"
done
for template in '{"tool_use": "x"}' null; do
    config "{\"chat_template\": $template}"
    tokenize_chats chatml
    silent warn
done
for text in '{"model_max_length": Infinity}' '' '{"chat_template": 5}' '{"chat_template": [{}]}'; do
    config "$text"
    tokenize_chats chatml
    says "warn --chat-template chatml is not compared with the model's own: 'chat/tokenizer_config.json'"
done
for text in "<|user|>" "<|im_start|>user<|im_sep|>" "[INST] <<SYS>>" "[SYSTEM_PROMPT][INST]"; do
    chat_model "$text"
    tokenize_chats qwen2.5
    says "is like none that is built in"
done
chat_model '<|im_start|>system\\nYou are a helpful assistant<|im_end|>'
tokenize_chats chatml
says "warn --chat-template chatml: the template of 'chat/tokenizer_config.json' has a system text for chats without one"
tokenize_chats chatml --default-system "You are a helpful assistant"
silent warn
chat_model '<|im_start|>system\\nYou are provided with function signatures<|im_end|>' # only where there are tools
tokenize_chats chatml
silent warn

# 200 documents of some 20 tokens: the epoch is what the token file says.
tokens=$("$tessera" inspect train.h5 --json | grep -o '"tokens":[0-9]*' | cut -d: -f2)
sequences=$((tokens / 32))
launch 2 train run.yaml train.steps=6
[ "$rc" -eq 0 ] || fail "exit code $rc"
says "info train ranks=2 gather_group=1 trainable="
says "info data sequences=$sequences steps_per_epoch=$(awk "BEGIN { printf \"%.5g\", $sequences / 3 }") epochs="
silent warn

# Ranks without work, tokens of another tokenizer: neither is an error, both are said.
launch 4 train run.yaml train.steps=2 output.dir=idle
says "warn train.micro_batches is 3: 1 of the 4 ranks compute nothing"
cp "$source_dir/examples/base/tokenizer.json" model
launch 1 train run.yaml train.steps=2 output.dir=same data.eval_path=train.h5
silent warn
echo >> model/tokenizer.json
launch 1 train run.yaml train.steps=2 output.dir=other data.eval_path=train.h5
says "warn data.path: 'train.h5' was made with another tokenizer.json than 'model/tokenizer.json'"
says "warn data.eval_path: 'train.h5' was made with another tokenizer.json"
[ "$rc" -eq 0 ] || fail "another tokenizer: exit code $rc"

# Readers take a checkpoint from beyond train.steps; perplexity is the exponential of the loss.
"$tessera" eval run.yaml train.steps=3 data.eval_path=train.h5 --json > result 2> log || fail "eval of step 6 with 3 steps"
sed 's/[{},]//g' result | awk '{ loss = $4; shown = $6; want = exp(loss)
    exit !($1 == "\"step\":" && $2 == 6 && $5 == "\"perplexity\":" && (shown - want) ^ 2 <= (1e-9 * want) ^ 2) }' ||
    fail "eval says $(cat result)"
"$tessera" sample run.yaml train.steps=3 --prompt line --tokens 3 > /dev/null 2> log || fail "sample of step 6 with 3 steps"

# On a terminal what is logged takes the place of the bar, and never stands behind it.
command -v script > /dev/null || { echo "skipped: needs script (bsdutils)"; exit 77; }
script -qec "stty cols 100; $(printf %q "$tessera") train run.yaml train.steps=6 output.dir=shown output.checkpoint_every=1" /dev/null \
    < /dev/null > log 2>&1 || fail "train on a terminal"
says "info checkpoint step=3"
says $'\r\x1b[Kinfo checkpoint step=3'
says "100%  step 6/6"
silent $'left\x1b[Kinfo'
echo passed
