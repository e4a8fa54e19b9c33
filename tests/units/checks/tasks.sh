# The rights of a task in the worker's sandbox, and the end of the processes that it starts.
check 'a task runs' '[[ $(task "echo \$ZKMW_WORKER") == w7 ]]'
check 'in a control group of its own' 'task "cat /proc/self/cgroup" | grep -q "zkmw-worker@w7.service/zkmw-.*\.0/"'
check 'without new privileges' '[[ $(task "grep NoNewPrivs /proc/self/status") == NoNewPrivs:*1 ]]'
check 'its home can be written, /var and /home can not' \
    'task "echo > \$HOME/x && ! echo > /var/x && ! echo > /home/x" 2>/dev/null'
check 'it has /dev/null, Python, threads, forks' \
    '[[ $(task "python3 -c \"import multiprocessing as m; print(sum(m.Pool(2).map(abs,[1,2])))\"") == 3 ]]'
check 'it goes before its worker when memory runs out' \
    '(($(task "cat /proc/self/oom_score_adj") == $(cat "/proc/$(prop $w MainPID)/oom_score_adj") + 500))'
check 'it has the usual limit of open files, and its worker the highest' \
    '[[ $(task "ulimit -n") == 1024 ]] && grep -Eq "^Max open files +([0-9]+) +\1 " "/proc/$(prop $w MainPID)/limits"'
foreign='INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_EXEC_PID|RUNTIME_DIRECTORY|CREDENTIALS_DIRECTORY'
check 'it does not have the variables that systemd sets for the worker' \
    '[[ -z $(task "env | grep -E \"^($foreign)=\"; true") ]]'
task 'setsid env -i sleep 881 & exit 0'
check 'a daemon that left its group and cleared its environment is killed' '! pgrep -f "^sleep 881"'

# A process that reaches the socket can send anything to systemd, which must not take it for the worker's.
cat >/usr/local/bin/forge-notify <<'PYTHON'
#!/usr/bin/python3
import socket, time
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"STATUS=forged", "/run/systemd/notify")
time.sleep(1)  # systemd identifies the sender
PYTHON
chmod +x /usr/local/bin/forge-notify
task forge-notify
check 'a task cannot speak for the worker' '[[ $(prop $w StatusText) == "registered as w7~"* ]]'
