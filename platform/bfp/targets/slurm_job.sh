# What a job on SLURM does, behind what it is told (`slurm_script`).
#
# On the first node are Ray's head and the driver (`bfp drive`), which waits for the other nodes. On each of these is a
# worker of Ray for as long as the standard input of its step is open; the first line of that is the cluster's token.
#
# A signal to this shell is one of three:
#     USR1    from SLURM, before the time limit: save, end, and go back into the queue
#     USR2    from `bfp stop`: save and end
#     TERM    from SLURM, which ends the job: save if there is time for it, and go back into the queue if it was preempted
#
# Lines of the log that begin with `bfp: job` are read again: by the next start of this job, which ends where several on
# end came no further, and by `bfp status` once SLURM has forgotten the job.
#
# Ports of Ray's services follow from the job's number, below those that the system gives away (32768 and more), of which
# Ray's workers get theirs: two jobs on one node do not meet.

set -u
told="" told_at=0 driver="" ray="" step="" temp="" run=()
export RAY_AUTH_MODE=token PYTHONNOUSERSITE=1

say() { tell note "$1"; }

tell() {
    local text=${2//\\/\\\\}
    printf '{"event": "%s", "message": "%s"}\n' "$1" "${text//\"/\\\"}"
}

refuse() {
    tell refused "$1"
    finish 2
}

heard() { # what has been asked for; a wish of the user's is above all else
    if [ -z "$told" ] || { [ "$1" = stop ] && [ "$told" != stop ]; }; then
        told=$1 told_at=$SECONDS
        if [ "$1" = stop ]; then say "told to stop: what stands is kept"; fi
    fi
    to "$driver" TERM
}
trap 'heard limit' USR1
trap 'heard stop' USR2
trap 'heard ended' TERM

to() { # a process, and where it is a container's what runs in it, gets a signal
    [ -n "$1" ] || return 0
    [ -z "$container" ] || pkill "-$2" -P "$1"
    kill "-$2" "$1" 2>/dev/null
}

is_up() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

pause() { # a second, unless a signal comes
    sleep 1 9>&- &
    wait "$!"
}

# what the processes of a node need ------------------------------------------------------------------------------------

make_room() { # a folder of this start's own; below it lie sockets, whose paths may have 107 characters
    local root=${TMPDIR:-/tmp}
    if [ "${#root}" -gt 16 ] || [ ! -w "$root" ]; then root=/tmp; fi
    local other
    for other in "$root"/bfp-[0-9]*-??????; do # of jobs of ours that were killed here
        if [ -O "$other" ] && [ -f "$other/shell" ] && ! is_up "$(cat "$other/shell")"; then rm -rf "$other"; fi
    done
    temp=$(mktemp -d "$root/bfp-$SLURM_JOB_ID-XXXXXX") || return 1
    echo "$$" >"$temp/shell"
    export RAY_AUTH_TOKEN_PATH=$temp/token
    (umask 077 && printf '%s' "$1" >"$temp/token")
    if [ -z "$container" ]; then
        run=("$environment/bin/python")
    else
        run=("$(command -v apptainer || command -v singularity || echo apptainer)" exec --bind "$temp")
        local folder
        for folder in "${shared_paths[@]}"; do run+=(--bind "$folder"); done
        if [ "$gpus" -gt 0 ]; then run+=(--nv); fi
        run+=("$container" python)
    fi
}

free_ports() { # the first of ten ports on end that nobody listens on; $1: the node's number
    local slot=$(((SLURM_JOB_ID * 16 + $1) % 2200)) first port
    while :; do
        first=$((10000 + 10 * slot))
        for ((port = first; port < first + 10; port++)); do
            grep -qs ":$(printf '%04X' "$port") [0-9A-F]*:0000 0A" /proc/net/tcp /proc/net/tcp6 && break
        done
        if [ "$port" -eq $((first + 10)) ]; then break; fi
        slot=$(((slot + 1) % 2200))
    done
    echo "$first"
}

object_store_bytes() { # a share of the memory that the job has here, within bounds, and no more than /dev/shm holds
    local memory_kb bytes free
    memory_kb=$(awk '/^MemTotal/ {print $2}' /proc/meminfo)
    if [ "${SLURM_MEM_PER_NODE:-0}" -gt 0 ]; then memory_kb=$((SLURM_MEM_PER_NODE * 1024)); fi
    bytes=$((memory_kb * 1024 * store_percent / 100))
    free=$(df -B1 --output=avail /dev/shm 2>/dev/null | tail -n 1)
    if [ -n "$free" ] && [ $((free * 9 / 10)) -lt "$bytes" ]; then bytes=$((free * 9 / 10)); fi
    if [ "$bytes" -gt "$store_max" ]; then bytes=$store_max; fi
    if [ "$bytes" -lt "$store_min" ]; then bytes=$store_min; fi
    echo "$bytes"
}

# Deaf to SIGTERM, which SLURM sends to every process of a job that it ends: the driver needs its Ray until it has saved.
deaf='
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
from ray.scripts.scripts import main
main()'

start_ray() { # $1: the node's number; $2: the first of its ports; then what is only the head's or a worker's
    local first=$2
    shift 2
    "${run[@]}" -c "$deaf" start --block "$@" --num-cpus="$cpus" --num-gpus="$gpus" \
        --object-store-memory="$(object_store_bytes)" --temp-dir="$temp/r" \
        --node-manager-port=$((first + 1)) --object-manager-port=$((first + 2)) \
        --dashboard-agent-listen-port=$((first + 3)) --dashboard-agent-grpc-port=$((first + 4)) \
        --runtime-env-agent-port=$((first + 5)) --metrics-export-port=$((first + 6)) \
        --min-worker-port=0 --max-worker-port=0 \
        --disable-usage-stats --log-style=record --log-color=false >"$temp/ray.txt" 2>&1 </dev/null 9>&- &
    ray=$!
}

end_ray() { # its processes end with it: Ray has the kernel see to that
    to "$ray" KILL
    wait "$ray" 2>/dev/null
    [ -z "$temp" ] || rm -rf "$temp"
}

last_of_ray() { # what it said at the end, without tracebacks, as lines of the log
    grep -Ev '^( |Traceback|$)' "$temp/ray.txt" | tail -n 5 | cut -c1-500 | sed "s/^/$1: /"
}

ends_within() { # whether standard input ends in so many seconds
    local line
    IFS= read -r -t "$1" line
    [ $? -eq 1 ]
}

be_a_worker() { # until standard input ends; where Ray ends before, it is started again, each time after a longer pause
    trap '' TERM
    local token began_at pause_s=1 node=$((SLURM_PROCID + 1))
    IFS= read -r token || exit 0
    make_room "$token" || exit 1
    while :; do
        began_at=$SECONDS
        start_ray "$node" "$(free_ports "$node")" --address="$head"
        while is_up "$ray"; do
            if ends_within 1; then break 2; fi
        done
        if [ $((SECONDS - began_at)) -gt 600 ]; then pause_s=1; fi # it was well for a while
        say "Ray on node $SLURMD_NODENAME has ended; it is started again in $pause_s s"
        last_of_ray "$SLURMD_NODENAME"
        if ends_within "$pause_s"; then break; fi
        pause_s=$((pause_s < 300 ? 2 * pause_s : 600))
    done
    end_ray
}

# the beginning and the end -------------------------------------------------------------------------------------------

start_head() { # and wait until it is up; Ray gives its start 30 s, which a busy node may need longer than
    local began
    for began in 1 2 3; do
        first=$(free_ports 0)
        start_ray 0 "$first" --head --port="$first" --dashboard-port=$((first + 7)) \
            --ray-client-server-port=$((first + 8)) --include-dashboard=false
        while is_up "$ray"; do
            if [ -n "$told" ]; then finish 130; fi
            if grep -qs "Ray runtime started" "$temp/ray.txt"; then return; fi
            pause
        done
        say "Ray did not start on $SLURMD_NODENAME, go $began of 3"
        last_of_ray Ray
    done
    finish 1
}

read_secrets() { # NAME=value lines, taken word for word: nothing in them is run
    local file=$1 line number=0 name value
    [ -r "$file" ] || refuse "$file: secrets_file cannot be read on $SLURMD_NODENAME"
    if [ "$(stat -Lc %u "$file")" != "$(id -u)" ] || [ $((0$(stat -Lc %a "$file") & 077)) -ne 0 ]; then
        refuse "$file: others may read or change this file of secrets: chmod 600 $file, and it has to be your own"
    fi
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        line=${line%$'\r'}
        case $line in '' | '#'*) continue ;; esac
        name=${line%%=*} value=${line#*=}
        name=${name#export }
        if [[ $line != *=* || ! $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]]; then
            refuse "$file:$number: not a line NAME=value"
        fi
        if [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]]; then value=${BASH_REMATCH[1]}; fi
        export "$name=$value"
    done <"$file"
}

load_modules() {
    # shellcheck disable=SC1091
    if ! type module >/dev/null 2>&1; then set +u && . /etc/profile && set -u; fi
    type module >/dev/null 2>&1 || refuse "modules: $SLURMD_NODENAME has no command module: leave them out"
    local name
    for name in "${modules[@]}"; do
        set +u
        module load "$name" || refuse "modules: $name cannot be loaded; module avail lists what there is"
        set -u
    done
}

idle_starts() { # how many starts up to this one, on end, came no further than those before them
    awk '
        function number(name) {
            if (!match($0, "\"" name "\": [0-9]+")) return -1
            return substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 4) + 0
        }
        /^bfp: job [0-9]+ of spec [0-9a-f]+ begins/ { if (starts++) idle = moved ? 0 : idle + 1; moved = 0 }
        /^\{.*"event": "progress"/ && number("total") >= 0 {
            match($0, /"phase": "[^"]*"/)
            phase = substr($0, RSTART, RLENGTH)
            left = number("total") - number("done")
            if (!(phase in least) || left < least[phase]) { least[phase] = left; moved = 1 }
        }
        END { print idle + 0 }' "$log"
}

preempted() { [[ $(scontrol show job "$SLURM_JOB_ID" 2>/dev/null) =~ JobState=RUNNING.*PreemptTime=[0-9] ]]; }

goes_on() { # whether a job whose driver ended with $1 goes back into the queue
    [ "$requeue" = 1 ] || return 1
    case $1 in 130 | 137) ;; *) return 1 ;; esac  # 137: it did not save in time
    [ "$told" = limit ] || { [ "$told" = ended ] && preempted; }
}

finish() { # end whatever is left of this start, and the job with $1
    trap '' USR1 TERM # `bfp stop` is heard until the end
    to "$driver" KILL
    driver=""
    exec 9>&-
    end_ray
    local until=$((SECONDS + 20))
    while is_up "$step" && [ "$SECONDS" -lt "$until" ]; do sleep 0.2; done
    if goes_on "$1"; then
        say "job $SLURM_JOB_ID goes back into the queue, and on from what was saved"
        echo "bfp: job $SLURM_JOB_ID of spec $digest goes on in the queue"
        if scontrol requeue "$SLURM_JOB_ID"; then exit "$1"; fi
        say "SLURM does not take it back into the queue: submit the same again to go on"
    elif [ "$told" = limit ] && [ "$1" = 130 ]; then
        say "its time is over: submit the same again to go on"
    fi
    echo "bfp: job $SLURM_JOB_ID of spec $digest ended with $1"
    exit "$1"
}

main() {
    echo "bfp: job $SLURM_JOB_ID of spec $digest begins on $SLURM_JOB_NODELIST"
    tell begins "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"
    if [ "$(idle_starts)" -ge 3 ]; then
        refuse "job $SLURM_JOB_ID has started three times on end and come no further: a step may take longer than the \
time limit, or a node may be ill; look at its log, give it a longer time_h, and submit the same again to go on"
    fi
    if [ "${#modules[@]}" -gt 0 ]; then load_modules; fi
    if [ -n "$secrets_file" ]; then read_secrets "$secrets_file"; fi
    if [ -z "$container" ] && [ ! -x "$environment/bin/python" ]; then
        refuse "environment: $environment: no virtual environment on $SLURMD_NODENAME; put it where every node sees it"
    fi

    local token first
    token=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    make_room "$token" || refuse "no folder can be made in ${TMPDIR:-/tmp} or /tmp on $SLURMD_NODENAME"
    start_head
    head=$(sed -n 's/.*Local node IP: *\([0-9.a-fA-F:]*\).*/\1/p' "$temp/ray.txt" | head -n 1):$first

    if [ "$nodes" -gt 1 ]; then
        # Ray's token goes over standard input; the storage's credentials are in the environment, as for the driver.
        exec 9> >(exec srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --ntasks-per-node=1 --relative=1 \
            --cpus-per-task="$cpus" --mem=0 --export=ALL --input=all --unbuffered --kill-on-bad-exit=0 --quiet \
            bash -c "$(declare -p head cpus gpus container environment shared_paths deaf \
                store_percent store_max store_min)
                $(declare -f say tell to is_up make_room free_ports object_store_bytes start_ray end_ray last_of_ray \
                ends_within be_a_worker)
                set -u
                be_a_worker")
        step=$!
        printf '%s\n' "$token" >&9
    fi

    if [ -n "$told" ]; then finish 130; fi
    RAY_ADDRESS=$head "${run[@]}" -m bfp drive </dev/null 9>&- &
    driver=$!
    if [ -n "$told" ]; then to "$driver" TERM; fi
    local lost_at=""
    while is_up "$driver"; do
        if [ -z "$lost_at" ] && ! is_up "$ray"; then
            lost_at=$SECONDS
            if [ -z "$told" ]; then
                say "Ray's head on $SLURMD_NODENAME has ended, and the run with it: submit the same again to go on"
                last_of_ray Ray
                to "$driver" TERM
            fi
        fi
        if [ -n "$lost_at" ] && [ $((SECONDS - lost_at)) -gt 30 ]; then to "$driver" KILL; fi
        # What could not be saved in time is done again from what was saved before.
        if [ "$told" = limit ] && [ $((SECONDS - told_at)) -gt $((warning_s - 10)) ]; then to "$driver" KILL; fi
        if [ "$told" = stop ] && [ $((SECONDS - told_at)) -gt 600 ]; then to "$driver" KILL; fi
        pause
    done
    wait "$driver"
    local code=$?
    driver=""
    if [ "$code" -gt 130 ] && [ -z "$told" ]; then
        echo "the driver was ended from outside (exit code $code), as when memory runs out: submit the same again to go on"
    fi
    # Told before it listened, by Python's own answer to the signal or by Ray's: nothing had begun.
    if [ -n "$told" ]; then case $code in 15 | 143) code=130 ;; esac fi
    if [ -n "$lost_at" ] && [ -z "$told" ] && [ "$code" -ne 0 ]; then code=1; fi
    finish "$code"
}

main
