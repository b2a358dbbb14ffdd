#!/bin/bash
# A listing in eight shards on a Slurm cluster: one array task a shard, then one job that joins them.
#
#     TILES=/data/slide_tiles OUT=/data/preds.csv CERVIX_MODEL=/data/bundle examples/slurm_array.sh
#
# Tiles, bundle and OUT's folder lie on storage that every node sees under the same path. A task that is killed or whose
# time is over is started again by Slurm and goes on where it stopped. cervix-merge refuses what does not belong together.
set -euo pipefail

SHARDS=${SHARDS:-8}
folder=$(dirname "$OUT")/shards
mkdir -p "$folder"

array=$(sbatch --parsable --requeue --array="1-$SHARDS" --gpus-per-task="${GPUS:-0}" --cpus-per-task="${CPUS:-16}" \
    --output="$folder/%a.log" --wrap="
        cervix-batch '$TILES' --out '$folder/'\$SLURM_ARRAY_TASK_ID.csv --shard \$SLURM_ARRAY_TASK_ID/$SHARDS
        code=\$?
        # 3: done, with failed rows, which the table names.
        exit \$(( code == 3 ? 0 : code ))")

sbatch --dependency="afterok:$array" --output="$folder/merge.log" --wrap="
    cervix-merge '$OUT' $(seq --format="'$folder/%g.csv'" --separator=' ' 1 "$SHARDS")"
