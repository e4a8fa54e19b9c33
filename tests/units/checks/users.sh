# Two workers on one host: a task of one reaches neither the other nor its tasks.
echo ZKMW_LABEL=who=w7 >/etc/zkmw/worker-w7.env
printf '%s\n' ZKMW_LABEL=who=w8 ZKMW_ID=w8.example.com >/etc/zkmw/worker-w8.env
systemctl restart $w
systemctl start zkmw-worker@w8
check 'an id with a dot comes from the file' \
    'within "[[ \$(prop zkmw-worker@w8 StatusText) == registered\ as\ w8.example* ]]"'
id=$(zkmw submit --detach --require who=w7 --env SECRET=squeamish 'exec sleep 886')
within 'pgrep -f "^sleep 886$" >/dev/null'
victim=$(pgrep -f '^sleep 886$')
other() { timeout 20 zkmw submit --require who=w8 "$1" 2>/dev/null; }
check 'each instance has a user of its own' \
    '[[ $(stat -c %U /proc/$victim) == zkmw-w-w7 && $(other "id -un") == zkmw-w-w8 ]]'
check 'a task cannot read the environment of another worker, nor of its tasks' \
    '! other "cat /proc/$victim/environ >/dev/null" && ! other "cat /proc/$(prop $w MainPID)/environ >/dev/null"'
check 'a task cannot kill another worker, nor its tasks' \
    '! other "kill -9 $victim" && ! other "kill -9 $(prop $w MainPID)" && pgrep -f "^sleep 886$" >/dev/null'
zkmw cancel "$id" >/dev/null
systemctl stop zkmw-worker@w8
rm /etc/zkmw/worker-w[78].env
systemctl restart $w
