#!/bin/bash
# @@{what}
# Written by `paceline launch slurm`; read it, change it, submit it as often as it takes:
#
#   submit   sbatch @@{script}
#   follow   paceline launch follow @@{job_dir}
#
# Submitted again, or requeued, it resumes the run from what is on disk.
#
@@{directives}

# What differs between schedulers: the job's name, its nodes, and how one reaches them.
JOB=$SLURM_JOB_ID
mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

at() { # NODE: sets AT, which put before a command runs it there, beside whatever else runs
    AT=(srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" --cpu-bind=none)
}

address_of() { # NODE: its address, as the scheduler knows it
    scontrol show node "$1" --oneliner | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p'
}

describe_job() {
    scontrol show job "$JOB"
}
