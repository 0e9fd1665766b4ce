#!/usr/bin/env bash
# Starts a one-node Slurm and runs the tests of this folder with it; needs root and Debian's packages slurmctld, slurmd,
# munge and slurm-client. With a command, runs that instead: run.sh [COMMAND...]
set -euo pipefail
root=$(realpath "$(dirname "$0")/../..")
[ $# -gt 0 ] || set -- "$root/.venv/bin/python" -m pytest "$root/tests/slurm"
folder=$(mktemp -d)
for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || { echo "error: $program is missing; apt-get install slurmctld slurmd munge slurm-client"; exit 2; }
done
mkdir "$folder"/{state,spool,log}
host=$(hostname -s)
cat > "$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=300
KillWait=60
JobRequeue=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$folder/slurm.conf
stop() {
    for pid in "$folder"/slurmd.pid "$folder"/slurmctld.pid; do
        [ -f "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap stop EXIT
mkdir -p /run/munge && chown munge: /run/munge
pgrep -x munged >/dev/null || runuser -u munge -- munged
slurmctld
slurmd
for _ in $(seq 60); do
    sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
    sleep 0.5
done
sinfo --noheader --format='slurm %v: partition %P, node %N %T'
"$@"
