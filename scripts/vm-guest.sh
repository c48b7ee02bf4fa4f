#!/bin/bash
# The first process of the machine that vm-check.sh boots: a bare Debian with cgroup v2 only. It prints a transcript.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc 2>/dev/null
mount -t sysfs sysfs /sys 2>/dev/null
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
hostname guest

end() { sync; echo o > /proc/sysrq-trigger; sleep 60; }
fail() {
  echo "vm-check: FAILED: $*"
  tail -n 40 /tmp/engine.log
  mycelium get pods -o wide; mycelium describe pods 2>&1 | tail -n 60
  dmesg | tail -n 20
  end
}
show() { printf '\n$ %s\n' "$*"; "$@"; }
# Repeats a command until it prints what is wanted.
until_says() {
  local wanted=$1 said
  shift
  for _ in $(seq 120); do
    said=$("$@" 2>&1)
    grep -qE -- "$wanted" <<<"$said" && return
    sleep 1
  done
  echo "$said"
  fail "\`$*\` never said $wanted"
}
pods() { mycelium get pods "$@" -o json; }
# What an engine could leave behind; the kernel's own threads come and go.
traces() {
  ip -o link | awk '{print "link", $2}'
  nft list tables
  awk '{print "mount", $2}' /proc/self/mounts
  find /sys/fs/cgroup -mindepth 1 -type d
  ip route
  ls /run/netns 2>/dev/null
  ps -eo args | grep -E '[m]ycelium|[b]usybox sleep'
}

up() {
  mycelium up >/tmp/engine.out 2>>/tmp/engine.log &
  engine=$!
  until_says '^ready in' cat /tmp/engine.out
  cat /tmp/engine.out
}

uname -sr
echo "cgroup: $(awk '$3 ~ /cgroup/ {print $3, $2}' /proc/self/mounts)"
traces > /tmp/before

# The image: a static busybox.
mkdir -p /tmp/image/bin /tmp/image/etc /tmp/image/tmp
cp /bin/busybox /tmp/image/bin/
for applet in sh sleep wget httpd cat tail nslookup echo head id; do ln -s busybox /tmp/image/bin/$applet; done
echo 'root:x:0:0::/:/bin/sh' > /tmp/image/etc/passwd
tar -C /tmp/image -cf /tmp/image.tar .
show mycelium image import --cmd /bin/sh /tmp/image.tar busybox:test || fail "import"

printf '\n$ mycelium up\n'
up
export KUBECONFIG=/var/lib/mycelium/admin.kubeconfig

cat > /tmp/pods.yaml <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command: [sleep, "100000"]
    resources: {limits: {cpu: 200m, memory: 64Mi}, requests: {cpu: 100m}}
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:test
    command: [tail, /dev/zero]
    resources: {limits: {memory: 32Mi}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox:test
        command: [sh, -c, 'echo "hello from v2" > /tmp/index.html; exec httpd -f -p 8080 -h /tmp']
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
YAML
show mycelium apply -f /tmp/pods.yaml || fail "apply"
until_says 'limited +1/1 +Running' mycelium get pods limited
until_says 'OOMKilled' pods greedy
until_says 'web +2/2' mycelium get deployment web
show mycelium get pods,deployments -o wide

show mycelium exec limited -- cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.weight
found=$(mycelium exec limited -- cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max | tr '\n' ' ')
[[ $found == "67108864 20000 100000 " ]] || fail "the limits are $found"
pods greedy | grep -q '"exitCode": 137' || fail "the killed container's code"
pods greedy | grep -E '"(reason|exitCode)"' | sort -u

until_says 'hello from v2' mycelium exec limited -- wget -qO- http://web
show mycelium exec limited -- wget -qO- http://web

printf '\n$ kill -9 of the engine, and up again\n'
before=$(pods | grep -E '"(containerID|restartCount)"')
kill -9 $engine; wait $engine 2>/dev/null
up
until_says 'limited +1/1 +Running' mycelium get pods limited
until_says 'web +2/2' mycelium get deployment web
[[ $(pods | grep -E '"(containerID|restartCount)"') == "$before" ]] || fail "pods were disturbed"
echo "pods: the same containers, no restart"
show mycelium exec limited -- echo "exec after adoption"

show mycelium status
show mycelium down || fail "down"
wait $engine
traces > /tmp/after
diff /tmp/before /tmp/after || fail "down left something behind"
echo "nothing is left: no process, mount, cgroup, interface, rule or route"
echo
echo "vm-check: passed"
end
