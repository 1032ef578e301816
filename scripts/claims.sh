#!/usr/bin/env bash
# The grids behind the claims in docs/results, a name each, from the root of the checkout:
#
#   PACS=… SAMPLE=… SENTENCES=… OTHERS=… scripts/claims.sh GRID [JOBS]
#
# PACS: domain/class/image; SAMPLE: a folder of photographs, one a class of ImageNet; SENTENCES: the
# captions of Flickr8k, one a line, in a file named flickr8k-captions.txt, as the cells name it;
# OTHERS: the sentences of WikiText-2, one a line. Only the grids that use them ask for them. All
# grids go on where they stopped, and cells whose results are committed are not run again. JOBS cells
# run side by side (2), each in a process of its own; on a GPU count 4 GB a cell.
set -euo pipefail

grid=${1:?name a grid: pacs nested entry strict few-images white-box emoji emoji-seeds scratch one-task \
foundation tenth}
jobs=${2:-2}
results=docs/results
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

budget=(--training.steps 200 --training.precision fp32 --training.workers 1 --jobs "$jobs")
seeds=(--seeds 0 --seeds 1 --seeds 2)
lite0=(--student tf_efficientnet_lite0)
terms=classification+image-contrastive+proximity
emoji=("${lite0[@]}" --student.image-size 96)
drawn=runs/unseen-classes-emoji
captioned=(--data $drawn/captions.csv --descriptions $drawn/keywords.json
    --splits.unseen-share 0.5 --splits.held-out-domain noto)

odd_half() { python scripts/odd_half.py "${PACS:?}" runs/pacs-odd; }

strict_heads() {  # strict_heads DOMAIN...: they are made, not shipped
    local domain
    for domain in "$@"; do
        [[ -f ${ATTAR_CACHE:-$HOME/.cache/attar}/pocket/head-without-$domain.safetensors ]] ||
            python scripts/train_pocket_head.py --pacs "${PACS:?}" \
                --imagenet-sample "${SAMPLE:?}" --without "$domain"
    done
}

domains() {  # domains RESULTS OUT OPTION...
    local name=$1 out=$2
    shift 2
    odd_half
    attar bench domains --data runs/pacs-odd --lr-domain photo --student.image-size 128 \
        --training.batch-size 32 "${budget[@]}" --out "$out" --results "$results/$name" "$@"
}

classes() {  # classes RESULTS OPTION...
    local name=$1
    shift
    attar bench classes --teacher pocket --training.batch-size 64 "${budget[@]}" \
        --out "runs/$name" --results "$results/$name" "$@"
}

picture() {  # the README's
    python scripts/domains_picture.py --out docs/unseen-domains.svg \
        --results $results/unseen-domains-pacs \
        --rows erm feature-mse vl2v-adip vl2v-adip+frozen-bn \
        rise+frozen-bn attar-2026-11-23
}

emoji_captions() {  # to each drawing the nearest sentence under the teacher
    # Where rounding makes another sentence the nearest, caption cells made elsewhere are refused.
    [[ -f $drawn/captions.csv ]] ||
        attar caption --data $drawn/emoji --source retrieval --texts "${SENTENCES:?}" \
            --teacher pocket --store $drawn/captions-store --out $drawn/captions.csv
}

foundation() {  # foundation RESULTS SENTENCES OPTION...
    local name=$1 sentences=$2
    shift 2
    python scripts/foundation_table.py --pacs "${PACS:?}" --imagenet-sample "${SAMPLE:?}" \
        --sentences "$sentences" --store runs/foundation/store --out "runs/$name" \
        --results "$results/$name" --seeds 0 1 2 "$@"
}

tenths() {  # by the training images alone: neither sketches nor Noto have a say
    [[ -f runs/tenths/selected-tenth.txt && -f runs/tenths/random-tenth.txt ]] && return
    attar embed --data runs/unpaired-foundation/data/images.csv --teacher pocket \
        --out runs/tenths/images
    python scripts/selection_table.py --images runs/tenths/images --captions "${SENTENCES:?}" \
        --others "${OTHERS:?}" --out runs/tenths --results $results/selected-tenth
}

case $grid in
pacs)  # unseen domains: all methods with one seed, then three seeds where the claims are
    strict_heads art_painting cartoon photo sketch
    pocket=(unseen-domains-pacs runs/pacs "${lite0[@]}" --teacher pocket
        --strict-teacher 'pocket-without:{domain}'
        --variants $results/unseen-domains-pacs/variants.yaml
        --methods vl2v-adip --methods feature-mse --methods erm)
    domains "${pocket[@]}" --methods kd --methods simkd --methods miro --methods rise \
        --methods scmd --methods text2concept --methods linear-probe --methods lp-ft
    domains "${pocket[@]}" --methods rise "${seeds[@]}"
    ;;
nested)  # for the second entry: what is chosen for a domain never saw it, for training or for test
    nested_splits=(art_painting-photo cartoon-sketch photo-art_painting sketch-cartoon)
    odd_half
    for split in "${nested_splits[@]}"; do
        left_out=${split%-*} held_out=${split#*-}
        mkdir -p "runs/nested/without-$left_out"
        for domain in art_painting cartoon photo sketch; do
            [[ $domain == "$left_out" ]] ||
                ln -sfn "../../pacs-odd/$domain" "runs/nested/without-$left_out/$domain"
        done
        attar bench domains --data "runs/nested/without-$left_out" --domains "$held_out" \
            --student.image-size 128 --training.batch-size 32 "${budget[@]}" "${lite0[@]}" \
            --teacher pocket --methods vl2v-adip --variants $results/own-entry/nested.yaml \
            --lrs 1e-3 --out "runs/nested/$split" --results "$results/own-entry/nested/$split"
    done
    ;;
entry)  # our own entries, then what tells their gain apart
    for rows in entries controls; do
        domains unseen-domains-pacs runs/pacs "${lite0[@]}" --teacher pocket --methods vl2v-adip \
            --variants "$results/own-entry/$rows.yaml" "${seeds[@]}"
    done
    picture
    ;;
strict)  # teachers that never saw the held-out domain; whom to follow where they are weak
    strict_heads art_painting cartoon photo sketch
    strict=(strict-teachers-pacs runs/strict "${lite0[@]}" --teacher 'pocket-without:{domain}'
        --methods vl2v-adip "${seeds[@]}")
    domains "${strict[@]}" --variants $results/strict-teachers-pacs/variants.yaml \
        --domains sketch --domains cartoon
    domains "${strict[@]}" --methods erm  # last, so that the table has all four domains
    ;;
few-images)
    domains few-images-pacs runs/pacs "${lite0[@]}" --teacher pocket --methods vl2v-adip \
        --methods erm --variants $results/few-images-pacs/variants.yaml "${seeds[@]}"
    ;;
white-box)
    # Its weights depend on the machine, and with them what its rows start from: never made twice.
    [[ -f runs/small-openclip/facts.json ]] ||
        python scripts/train_small_openclip.py --pacs "${PACS:?}" --out runs/small-openclip
    domains white-box-pacs runs/pacs --teacher pocket --student teacher --domains sketch \
        --methods vl2v-sd --methods wise-ft --variants $results/white-box-pacs/variants.yaml \
        --lrs 3e-5 --lrs 1e-4 --lrs 3e-4
    ;;
emoji)  # unseen classes: the eight combinations of Li et al.'s table 1, and its table 5
    : "${SENTENCES:?}"
    rows=()
    for row in closed-set classification feature-mse classification+feature-mse image-contrastive \
        classification+image-contrastive classification+image-contrastive+feature-mse $terms \
        $terms+feature-mse image-contrastive+proximity image-contrastive+proximity+feature-mse \
        $terms+descriptions; do
        rows+=(--rows "$row")
    done
    classes unseen-classes-emoji "${emoji[@]}" "${rows[@]}"  # writes the pictures as well
    emoji_captions
    classes unseen-classes-emoji "${emoji[@]}" "${captioned[@]}" "${rows[@]}" \
        --rows $terms+caption --rows $terms+descriptions+caption
    # A step through the text tower takes as long as seven others: one learning rate, the one that
    # all rows above have chosen.
    classes unseen-classes-emoji-prompts "${emoji[@]}" "${captioned[@]}" --lrs 3e-3 \
        --rows $terms+prompts --rows $terms+descriptions+prompts \
        --rows $terms+descriptions+caption+prompts
    python scripts/coherence_correlation.py --same-images emoji captions.csv \
        --results $results/unseen-classes-emoji $results/unseen-classes-emoji-prompts
    ;;
emoji-seeds)  # a table of its own, since every row of one has the same seeds
    classes unseen-classes-emoji-seeds "${emoji[@]}" "${seeds[@]}" --lrs 3e-3 \
        --rows classification --rows classification+image-contrastive --rows $terms \
        --rows $terms+descriptions
    ;;
scratch)
    classes unseen-classes-scratch --student resnet18 --student.weights none \
        --student.image-size 64 "${seeds[@]}" --rows classification \
        --rows classification+image-contrastive --rows $terms --rows $terms+descriptions
    ;;
one-task)
    [[ -e flickr8k-captions.txt ]] || ln -s "$(realpath "${SENTENCES:?}")" flickr8k-captions.txt
    classes one-task "${lite0[@]}" --student.image-size 96 "${seeds[@]}" --rows closed-set \
        --rows $terms --methods vl2v-adip --methods attar \
        --methods feature-mse --methods kd --variants $results/one-task/variants.yaml
    ;;
foundation)
    strict_heads sketch
    foundation unpaired-foundation "${SENTENCES:?}" --strict-teacher pocket-without:sketch \
        --arms '(.7, .3, 0), A' feature-mse
    # The other four arms have one seed: scripts/foundation_table.py without --arms and --seeds.
    ;;
tenth)  # after foundation, which has listed the images
    tenths
    for tenth in selected-tenth random-tenth; do
        foundation $tenth runs/tenths/$tenth.txt --arms '(.7, .3, 0), A'
    done
    ;;
*)
    echo "unknown grid: $grid" >&2
    exit 2
    ;;
esac
