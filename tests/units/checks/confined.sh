# Tasks that have less than their worker: the drop-in that the unit names for those of another user, and limits.
systemctl stop $w
rm -f /run/zkmw-worker-w7
id -u runner >/dev/null 2>&1 || useradd --system runner
capabilities='CAP_CHOWN CAP_KILL CAP_SETGID CAP_SETUID CAP_SYS_PTRACE'
dropin $w DynamicUser=no User=root "CapabilityBoundingSet=$capabilities" WorkingDirectory=/
printf '%s\n' ZKMW_RUN_AS=runner ZKMW_CLEAN_ENV=yes >/etc/zkmw/worker-w7.env
systemctl start $w
check 'tasks of another user than the worker' \
    '[[ $(task "id -un; echo \$USER; echo x >/dev/stdout") == runner*runner*x ]] &&
    [[ $(stat -c %U /proc/$(prop $w MainPID)) == root ]]'
check 'cannot read what it has, nor kill it' \
    '! task "cat /proc/$(prop $w MainPID)/environ" 2>/dev/null && ! task "kill -9 $(prop $w MainPID)" 2>/dev/null'
check 'nor their slot' '! task "kill -9 \$PPID || exit 3" 2>/dev/null && [[ $(task "echo lives") == lives ]]'
old=$(prop $w MainPID)
id=$(zkmw submit --detach '[ $ZKMW_ATTEMPT -gt 1 ] || exec sleep 881; echo $ZKMW_ATTEMPT')
within 'pgrep -f "^sleep 881$" >/dev/null'
kill -9 "$old"
check 'and die with it' '[[ $(timeout 30 zkmw wait $id) == 2 ]] && ! pgrep -f "^sleep 881$"'
systemctl stop $w
undo $w
printf '%s\n' ZKMW_RUN_AS=runner >/etc/zkmw/worker-bad.env
systemctl restart zkmw-worker@bad 2>/dev/null
check 'a worker that is not root cannot do that' \
    "ends zkmw-worker@bad 78 'run-as: only a worker that root has started'"
rm /etc/zkmw/worker-*.env

printf '%s\n' ZKMW_TASK_MEMORY=64MiB ZKMW_TASK_CPUS=0.5 ZKMW_TASK_PIDS=40 ZKMW_SLOTS=2 >/etc/zkmw/worker-w7.env
if grep -q memory /sys/fs/cgroup/cgroup.controllers; then
    systemctl start $w
    group=/sys/fs/cgroup$(prop $w ControlGroup)
    in_leaf() {
        grep -qx "$(prop $w MainPID)" "$group/zkmw-worker/cgroup.procs" && [[ -z $(<"$group/cgroup.procs") ]]
    } 2>/dev/null
    check 'the worker goes to a leaf of its group' 'within in_leaf'
    check 'a task that needs too much memory fails, and says so' \
        '! task "dd if=/dev/zero of=/dev/null bs=200M count=1" 2>/tmp/said &&
        grep -q -- "64MiB (--task-memory)" /tmp/said'
    check 'the worker lives on' '[[ $(task "echo lives") == lives && $(prop $w NRestarts) == 0 ]]'
    bomb=$(zkmw submit --detach "exec perl -e 'fork while 1'")
    within '(($(pgrep -c perl) >= 30))'
    check 'a fork bomb stays small' '(($(pgrep -c perl) <= 40)) && [[ $(task "echo lives") == lives ]]'
    zkmw cancel "$bomb" >/dev/null
    check 'and ends' 'within "! pgrep perl >/dev/null"'
    old=$(prop $w MainPID)
    kill -9 "$old"
    check 'limits hold after a restart' \
        'within "[[ \$(prop $w MainPID) != $old && \$(prop $w StatusText) == registered* ]]" &&
        [[ $(task "cat /sys/fs/cgroup\$(sed s/^0::// /proc/self/cgroup)/pids.max") == 40 ]]'
    systemctl stop $w
else
    systemctl start $w 2>/dev/null
    check 'limits that cannot be had' "ends $w 78 'no controller memory of version 2'"
fi
rm /etc/zkmw/worker-w7.env
systemctl restart $w
