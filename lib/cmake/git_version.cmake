# Writes git_version.h at build time: cmake -DSOURCE_DIR=... -DOUT=... -DVERSION=... -P git_version.cmake
# Build time, not configure time: a commit after configuring must show. A tree without git (tarball),
# or unpacked inside another repository, gives commit "unknown".
set(commit "unknown")
set(dirty 0)
find_program(GIT git)
if(GIT AND EXISTS "${SOURCE_DIR}/.git")
  execute_process(COMMAND ${GIT} -C "${SOURCE_DIR}" rev-parse --short=12 HEAD
    OUTPUT_VARIABLE head OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    set(commit "${head}")
    execute_process(COMMAND ${GIT} -C "${SOURCE_DIR}" status --porcelain --untracked-files=no
      OUTPUT_VARIABLE changes OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(changes)
      set(dirty 1)
    endif()
  endif()
endif()
set(text "#define MILLION_GIT_COMMIT \"${commit}\"\n#define MILLION_GIT_DIRTY ${dirty}\n")
string(APPEND text "#define MILLION_VERSION \"${VERSION}\"\n")
# Rewritten only when it changes, so an unchanged tree rebuilds nothing.
set(old "")
if(EXISTS "${OUT}")
  file(READ "${OUT}" old)
endif()
if(NOT old STREQUAL text)
  file(WRITE "${OUT}" "${text}")
endif()
