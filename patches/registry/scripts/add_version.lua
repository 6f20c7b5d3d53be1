-- Register a stored bundle as a task's next version and point the alias at it.
local task = load_task()
local refused = stale(task)
if refused then return refused end
local known = load_version(arg.digest)
local more, tenant = known and {} or added_by(arg.summary, 1), nil
if not task then more.tasks = 1 end
if next(more) then
  tenant, refused = counted_tenant()
  refused = refused or over_quota(tenant, more)
  if not refused and not known then refused = too_costly(tenant, arg.summary) end
  if refused then return refused end
end
if redis.call('HEXISTS', BLOBS, arg.digest) == 0 then return fail('blob_missing') end
local is_moved = arg.alias and not (task and names(task, arg.alias, arg.digest))
if known and not is_moved then
  return cjson.encode({revision = task.revision, version = known.version, was_created = false})
end
local other = is_moved and task and other_outputs(arg.digest, task.aliases[arg.alias])
if other then return other end
local note = is_moved and task and outputs_note(arg.digest, task.aliases[arg.alias]) or nil
if arg.origin then note = arg.origin .. (note and '; ' .. note or '') end
local revision = new_revision()
if tenant then count(tenant, more) end
if task and is_moved then remember(state_of(task)) end
task = task or new_task()
local version = known and known.version or task.next_version
if not known then
  task.next_version = version + 1
  redis.call('HSET', VERSIONS, arg.digest, cjson.encode({
    version = version, created_ms = now_ms, actor = arg.actor, summary = arg.summary}))
  redis.call('HINCRBY', REFS, arg.digest, 1)
  redis.call('ZREM', UNUSED, arg.digest)
end
local previous = is_moved and point(task, arg.alias, arg.digest, version) or nil
save_task(task, revision)
record(revision, known and 'set_alias' or 'add_version', {
  tenant = arg.tenant, task = arg.task, alias = arg.alias, previous = previous,
  current = arg.digest, version = version, note = note})
return done({revision = revision, version = version, was_created = not known})
