#!/bin/bash
# Four shares of one job whose output is on a store: sbatch slurm-array.sh
# Tasks need not run at the same time: none waits for the others, and the last one makes the manifest.
#SBATCH --job-name=embed-tickets
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=1G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
# SIGTERM a minute before the end: requests in flight are waited for, nothing is paid twice
#SBATCH --signal=TERM@60
set -u

srun embedctl batch run 's3://bucket/tickets/*.parquet' -o s3://bucket/tickets-embedded \
    -m openai:text-embedding-3-small --shard auto --no-wait --max-cost 40 --no-progress
code=$?

case $code in
    75) exit 0 ;;                                                                 # its share is done, or another holds it
    143) scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" ;;       # told to stop: it goes on later
esac
exit "$code"
