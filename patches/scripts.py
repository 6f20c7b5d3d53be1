"""The registry's changes as Lua: each script is one atomic step in Redis.

Every script gets the same keys (``docs/registry.md``) and one JSON argument, and returns JSON:
its outcome, or ``error`` with what was found. All keys it touches are among KEYS and carry one
hash tag, so that the scripts run on Redis Cluster.

The first write of every script is one that Redis refuses when it is out of memory or a replica,
so a script that can't finish has changed nothing. The outcome is kept for a minute under the
call's request id: a client that lost the answer and asks again gets the same answer, and no
second change.
"""

KEY_NAMES = (
    "revision",
    "tasks",
    "changes",
    "keys",
    "blobs",
    "refs",
    "unused",
    "garbage",
    "request",
    "versions",
    "history",
)

EVENTS_KEPT = 10_000
HISTORY_KEPT = 50
OUTCOME_KEPT_S = 60

_PRELUDE = f"""
local REVISION, TASKS, CHANGES, API_KEYS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local BLOBS, REFS, UNUSED, GARBAGE = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local REQUEST, VERSIONS, HISTORY = KEYS[9], KEYS[10], KEYS[11]
local arg = cjson.decode(ARGV[1])

local replay = redis.call('GET', REQUEST)
if replay then return replay end

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function done(outcome)
  local text = cjson.encode(outcome)
  redis.call('SET', REQUEST, text, 'EX', {OUTCOME_KEPT_S})
  return text
end

local function fail(code, found)
  return cjson.encode({{error = code, found = found}})
end

local function new_revision()
  return redis.call('INCR', REVISION)
end

local function record(revision, action, fields)
  local entry = {{'action', action, 'actor', arg.actor, 'at_ms', string.format('%.0f', now_ms)}}
  for name, value in pairs(fields) do
    entry[#entry + 1] = name
    entry[#entry + 1] = tostring(value)
  end
  redis.call('XADD', CHANGES, 'MAXLEN', '~', {EVENTS_KEPT}, revision .. '-0', unpack(entry))
end

local function load_task()
  local text = redis.call('HGET', TASKS, arg.field)
  return text and cjson.decode(text) or nil
end

local function new_task()
  return {{created_ms = now_ms, next_version = 1, description = '', is_sensitive = false,
          aliases = {{}}}}
end

local function save_task(task, revision)
  task.revision = revision
  task.updated_ms = now_ms
  redis.call('HSET', TASKS, arg.field, cjson.encode(task))
end

local function stale(task)
  local found = task and task.revision or 0
  if arg.if_match and arg.if_match ~= found then return fail('stale', found) end
  return nil
end

local function load_version(digest)
  local text = redis.call('HGET', VERSIONS, digest)
  return text and cjson.decode(text) or nil
end

local function load_stack(alias)
  local text = redis.call('HGET', HISTORY, alias)
  return text and cjson.decode(text) or {{}}
end

local function save_stack(alias, stack)
  while #stack > {HISTORY_KEPT} do table.remove(stack, 1) end
  redis.call('HSET', HISTORY, alias, cjson.encode(stack))
end

local function names(task, alias, digest)
  local target = task.aliases[alias]
  return target ~= nil and target.digest == digest
end

local function point(task, alias, digest, version)
  local was = task.aliases[alias]
  task.aliases[alias] = {{digest = digest, version = version}}
  return was and was.digest or nil
end

local function push(alias, digest)
  local stack = load_stack(alias)
  stack[#stack + 1] = digest
  save_stack(alias, stack)
end

local function drop_ref(digest)
  if redis.call('HINCRBY', REFS, digest, -1) <= 0 then
    redis.call('HDEL', REFS, digest)
    redis.call('ZADD', UNUSED, now_ms, digest)
  end
end
"""

ADD_VERSION = (
    _PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
if redis.call('HEXISTS', BLOBS, arg.digest) == 0 then return fail('blob_missing') end
local known = load_version(arg.digest)
local is_moved = arg.alias and not (task and names(task, arg.alias, arg.digest))
if known and not is_moved then
  return cjson.encode({revision = task.revision, version = known.version, was_created = false})
end
local revision = new_revision()
task = task or new_task()
local version = known and known.version or task.next_version
if not known then
  task.next_version = version + 1
  redis.call('HSET', VERSIONS, arg.digest, cjson.encode({
    version = version, created_ms = now_ms, actor = arg.actor, summary = arg.summary}))
  redis.call('HINCRBY', REFS, arg.digest, 1)
  redis.call('ZREM', UNUSED, arg.digest)
end
local previous
if is_moved then
  previous = point(task, arg.alias, arg.digest, version)
  push(arg.alias, arg.digest)
end
save_task(task, revision)
record(revision, known and 'set_alias' or 'add_version', {
  tenant = arg.tenant, task = arg.task, alias = arg.alias, previous = previous,
  current = arg.digest, version = version})
return done({revision = revision, version = version, was_created = not known})
"""
)

SET_ALIAS = (
    _PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local known = load_version(arg.digest)
if not known then return fail('version_not_found') end
if names(task, arg.alias, arg.digest) then
  return cjson.encode({revision = task.revision, version = known.version, digest = arg.digest,
                       previous = arg.digest})
end
local revision = new_revision()
local previous = point(task, arg.alias, arg.digest, known.version)
push(arg.alias, arg.digest)
save_task(task, revision)
record(revision, 'set_alias', {
  tenant = arg.tenant, task = arg.task, alias = arg.alias, previous = previous,
  current = arg.digest, version = known.version})
return done({revision = revision, version = known.version, digest = arg.digest,
             previous = previous})
"""
)

ROLLBACK = (
    _PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local stack = load_stack(arg.alias)
local digest = stack[#stack - 1]
if not digest then return fail('nothing_to_roll_back') end
local revision = new_revision()
table.remove(stack)
save_stack(arg.alias, stack)
local version = load_version(digest).version
local previous = point(task, arg.alias, digest, version)
save_task(task, revision)
record(revision, 'rollback', {
  tenant = arg.tenant, task = arg.task, alias = arg.alias, previous = previous,
  current = digest, version = version})
return done({revision = revision, version = version, digest = digest, previous = previous})
"""
)

DELETE_VERSION = (
    _PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local known = load_version(arg.digest)
if not known then return fail('version_not_found') end
local users = {}
for alias, _ in pairs(task.aliases) do
  if names(task, alias, arg.digest) then users[#users + 1] = alias end
end
if #users > 0 then return cjson.encode({error = 'version_in_use', aliases = users}) end
local revision = new_revision()
for alias, _ in pairs(task.aliases) do
  local kept = {}
  for _, digest in ipairs(load_stack(alias)) do
    if digest ~= arg.digest and kept[#kept] ~= digest then kept[#kept + 1] = digest end
  end
  save_stack(alias, kept)
end
redis.call('HDEL', VERSIONS, arg.digest)
drop_ref(arg.digest)
save_task(task, revision)
record(revision, 'delete_version', {
  tenant = arg.tenant, task = arg.task, previous = arg.digest, version = known.version})
return done({revision = revision})
"""
)

PUT_TASK = (
    _PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
local is_same = task and task.description == arg.description
  and task.is_sensitive == arg.is_sensitive
if is_same then return cjson.encode({revision = task.revision, was_created = false}) end
local revision = new_revision()
local was_created = not task
task = task or new_task()
task.description = arg.description
task.is_sensitive = arg.is_sensitive
save_task(task, revision)
record(revision, 'put_task', {tenant = arg.tenant, task = arg.task})
return done({revision = revision, was_created = was_created})
"""
)

DELETE_TASK = (
    _PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local revision = new_revision()
for _, digest in ipairs(redis.call('HKEYS', VERSIONS)) do drop_ref(digest) end
redis.call('DEL', VERSIONS, HISTORY)
redis.call('HDEL', TASKS, arg.field)
record(revision, 'delete_task', {tenant = arg.tenant, task = arg.task})
return done({revision = revision})
"""
)

CREATE_KEY = (
    _PRELUDE
    + """
if arg.is_first_only and redis.call('HLEN', API_KEYS) > 0 then return fail('keys_exist') end
local revision = new_revision()
arg.key.created_ms = now_ms
redis.call('HSET', API_KEYS, arg.key_id, cjson.encode(arg.key))
record(revision, 'create_key', {tenant = arg.tenant, key_id = arg.key_id})
return done({revision = revision, created_ms = now_ms})
"""
)

REVOKE_KEY = (
    _PRELUDE
    + """
local text = redis.call('HGET', API_KEYS, arg.key_id)
if not text or cjson.decode(text).tenant ~= arg.tenant then return fail('key_not_found') end
local revision = new_revision()
redis.call('HDEL', API_KEYS, arg.key_id)
record(revision, 'revoke_key', {tenant = arg.tenant, key_id = arg.key_id})
return done({revision = revision})
"""
)

BEGIN_UPLOAD = (
    _PRELUDE
    + """
local location = redis.call('HGET', BLOBS, arg.digest)
if location then
  if redis.call('ZSCORE', UNUSED, arg.digest) then
    redis.call('ZADD', UNUSED, now_ms, arg.digest)
  end
else
  redis.call('ZADD', GARBAGE, now_ms + arg.expires_ms, arg.location)
end
return done({is_present = location ~= false})
"""
)

FINISH_UPLOAD = (
    _PRELUDE
    + """
if redis.call('ZSCORE', GARBAGE, arg.location) == false then return fail('upload_expired') end
if redis.call('HSETNX', BLOBS, arg.digest, arg.location) == 0 then
  redis.call('ZADD', GARBAGE, now_ms, arg.location)
else
  redis.call('ZREM', GARBAGE, arg.location)
  if redis.call('HEXISTS', REFS, arg.digest) == 0 then
    redis.call('ZADD', UNUSED, now_ms, arg.digest)
  end
end
return done({is_present = true})
"""
)

RELEASE_UNUSED = (
    _PRELUDE
    + """
local unused = redis.call('ZRANGEBYSCORE', UNUSED, '-inf', now_ms - arg.grace_ms, 'LIMIT', 0, 100)
local locations = redis.call('ZRANGEBYSCORE', GARBAGE, '-inf', now_ms, 'LIMIT', 0, 100)
for _, digest in ipairs(unused) do
  local location = redis.call('HGET', BLOBS, digest)
  if location then
    locations[#locations + 1] = location
    -- pcall: out of memory is when this must work; the note only matters if the caller dies
    redis.pcall('ZADD', GARBAGE, now_ms, location)
  end
  redis.call('HDEL', BLOBS, digest)
  redis.call('ZREM', UNUSED, digest)
end
return locations
"""
)

READ_ALL = """
return {redis.call('GET', KEYS[1]) or '0', redis.call('HGETALL', KEYS[2]),
        redis.call('HGETALL', KEYS[4])}
"""
"""Scripts also where only reading is to be atomic: MULTI is refused when memory is short."""

READ_TASK = """
return {redis.call('HGET', KEYS[2], cjson.decode(ARGV[1]).field) or '',
        redis.call('HGETALL', KEYS[10])}
"""
