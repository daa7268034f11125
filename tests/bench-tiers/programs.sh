#!/bin/bash
# What real programs cost on a kernel: prints lines of `name value`.
#
#   programs.sh redis|nginx|sysbench|build|shell|python|sqlite [quick]
set -euo pipefail
here=/opt/bench
quick=${2:-}

# Seconds that a command takes.
seconds() {
    local begin=$EPOCHREALTIME
    "$@" >/tmp/out 2>&1 || { cat /tmp/out >&2; exit 1; }
    awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.4f", b - a }'
}

# Until a port answers, at most 10 s.
answers() {
    for _ in $(seq 200); do
        (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
        sleep 0.05
    done
    echo "programs.sh: nothing answers on port $1" >&2
    exit 1
}

$here/measure up
case $1 in
redis)
    redis-server --port 6379 --save '' --appendonly no --dir /tmp >/tmp/redis.log &
    answers 6379
    requests=$([ -z "$quick" ] && echo 40000 || echo 4000)
    redis-benchmark -t set,get -n "$requests" -c 20 --csv |
        awk -F'"' '$2 == "SET" { print "redis_set", $4 } $2 == "GET" { print "redis_get", $4 }'
    redis-benchmark -t set,get -n $((requests * 8)) -c 20 -P 16 --csv |
        awk -F'"' '$2 == "SET" { print "redis_set_pipeline16", $4 } $2 == "GET" { print "redis_get_pipeline16", $4 }'
    kill %1
    ;;
nginx)
    nginx -c $here/nginx.conf &
    answers 8080
    wrk -t 1 -c 16 -d "$([ -z "$quick" ] && echo 4 || echo 1)s" http://127.0.0.1:8080/1k |
        awk '/^Requests.sec:/ { print "nginx_1k", $2 } /Socket errors|Non-2xx/ { print > "/dev/stderr"; exit 1 }'
    kill %1
    ;;
sysbench)
    for threads in 1 2; do
        sysbench cpu --threads=$threads --time="$([ -z "$quick" ] && echo 4 || echo 1)" run |
            awk -v t=$threads '/events per second/ { print "sysbench_" t, $NF }'
    done
    ;;
build)
    mkdir -p /tmp/build && cd /tmp/build
    cp $here/build.py . && python3 build.py "$([ -z "$quick" ] && echo 12 || echo 2)"
    echo build "$(seconds make -s)"
    ./program >/dev/null
    ;;
shell)
    pipelines() { for i in $(seq "$1"); do echo "$i" | tr 1 2 | cat; done; }
    echo shell_pipelines "$(seconds pipelines "$([ -z "$quick" ] && echo 200 || echo 20)")"
    ;;
python)
    python3 -c 'import json, http.client, sqlite3, decimal'
    echo python "$(seconds python3 -c 'import json, http.client, sqlite3, decimal')"
    ;;
sqlite)
    python3 $here/sqlite.py "$([ -z "$quick" ] && echo 200 || echo 20)"
    ;;
*)
    exit 2
    ;;
esac
