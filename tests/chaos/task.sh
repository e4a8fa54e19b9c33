#!/bin/sh
# The command of the tasks of a chaos run. It notes every start and end, and any process of the attempt holds a lock as
# long as it lives. A process that does not get the lock at once runs beside another attempt, and notes that.
#
# usage: task.sh FOLDER NAME KIND SECONDS CODE
dir=$1 name=$2 kind=$3 secs=$4 code=$5
log=$dir/$name

# WHAT ATTEMPT UPTIME PID WORKER TOKEN CODE, in one write.
note() {
    read -r up _ </proc/uptime
    echo "$1 $ZKMW_ATTEMPT $up $$ $ZKMW_WORKER $ZKMW_EPOCH $2" >>"$log"
}

exec 9>>"$log.lock"
if ! flock -n 9; then
    note overlap -
    exit 99
fi
note start -
case $kind in
    trap) trap '' TERM ;;
    # Exits with 0 when it is asked to end.
    polite) trap 'exit 0' TERM ;;
    # It leaves a child behind on purpose, which has to be killed before the end is reported.
    fork) (trap '' TERM; exec sleep 30) & ;;
    # Fails until two attempts have come to their end, and each leaves something behind outside of its group.
    flaky)
        (trap '' TERM; exec setsid sleep 30) &
        [ "$(grep -c '^end' "$log")" -ge 2 ] || code=7
        ;;
esac
sleep "$secs"
note end "$code"
if [ "$kind" = suicide ]; then kill -9 $$; fi
echo "out $name $ZKMW_ATTEMPT"
exit "$code"
