-- Remove a version that neither an alias nor the traffic names, and the remembered states that name
-- it.
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local known = load_version(arg.digest)
if not known then return fail('version_not_found') end
local users = {}
for alias, target in pairs(task.aliases) do
  if target.digest == arg.digest then users[alias] = target end
end
if next(users) or is_in_traffic(task, arg.digest) then
  return cjson.encode({error = 'version_in_use', aliases = users,
                       is_in_traffic = is_in_traffic(task, arg.digest)})
end
local tenant, uncounted = counted_tenant()
if uncounted then return uncounted end
local revision = new_revision()
count(tenant, added_by(known.summary, -1))
revise_states(function(state)
  if is_in_traffic(state, arg.digest) then return false end
  for _, target in pairs(state.aliases) do
    if target.digest == arg.digest then return false end
  end
  return true
end)
redis.call('HDEL', VERSIONS, arg.digest)
drop_ref(arg.digest)
save_task(task, revision)
record(revision, 'delete_version', {
  tenant = arg.tenant, task = arg.task, previous = arg.digest, version = known.version})
return done({revision = revision})
